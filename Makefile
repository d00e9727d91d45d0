# One environment (.venv) serves every target; each target makes what it needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TYPING := .cache/typing
WORKERS ?= 2

DEMO_PROMPT := "Mia has 58 keys and Sam 55 more than Mia. How many in all?"

.DEFAULT_GOAL := help
.PHONY: help env demo test quick lint types format bench clean

help:           ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(STAMP)   ## build the environment: .venv with everything for development, pinned

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "CoSpec needs Python 3.10 or newer; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: env       ## export the tiny pair and solve a problem with it
	$(BIN)/cospec-export --target tiny --force
	$(BIN)/cospec-run --engine-dir models/ --provenance --stats $(DEMO_PROMPT)

test: env types lint ## whole suite, lint and types
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile

quick: env      ## the suite without what takes minutes or downloads
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile -m "not slow and not wheel"

lint: env       ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The repository root is the package, so mypy needs a folder that holds it under its name.
types: env      ## mypy, strict
	@mkdir -p $(TYPING) && ln -sfn ../.. $(TYPING)/cospec
	cd $(TYPING) && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
	  -p cospec.calibration -p cospec.export -p cospec.models -p cospec.runtime

format: env     ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env      ## memory of an export and overhead of the loop; see bench/
	$(BIN)/python -m bench.export_memory
	$(BIN)/python -m bench.loop_overhead

clean:          ## remove the environment, caches and exported bundles
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
