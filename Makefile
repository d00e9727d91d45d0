# One environment (.venv) serves every target; each target makes what it needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TYPING := .cache/typing
WORKERS ?= 2
PACKAGES := bench calibration export models runtime
HELPERS := $(basename $(notdir $(filter-out tests/test_%,$(wildcard tests/*.py))))

DEMO_PROMPT := "Mia has 58 keys and Sam 55 more than Mia. How many in all?"
# The target alone gets this one wrong (the answer is 2500); the draft was trained on more of its kind.
COLLAB_PROMPT := "What is 625 times 4?"

.DEFAULT_GOAL := help
.PHONY: help env demo test test-trt quick lint types docs format bench clean

help:           ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(STAMP)   ## build the environment: .venv with everything for development, pinned

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "CoSpec needs Python 3.10 or newer; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: env       ## export the tiny pair and solve problems with it, strictly and in collaboration
	$(BIN)/cospec-export --target tiny --force --output models/tiny
	$(BIN)/cospec-run --engine-dir models/tiny --provenance --stats $(DEMO_PROMPT)
	$(BIN)/cospec-run --engine-dir models/tiny --mode strict --provenance $(COLLAB_PROMPT)
	$(BIN)/cospec-run --engine-dir models/tiny --mode collab --provenance $(COLLAB_PROMPT)

test: env types lint ## whole suite, lint and types
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile

test-trt: env   ## every model through TensorRT's parser and builder, old versions too, and the tables in docs/
	cd tests && ../$(BIN)/python -W ignore tensorrt_matrix.py && ../$(BIN)/python tensorrt_table.py
	$(BIN)/pytest tests/runtime/tensorrt $(wildcard tests/export/test_tensorrt*.py)

quick: env      ## the suite without what takes minutes or downloads
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile -m "not slow and not wheel"

lint: env       ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The repository root is the package, so mypy needs a folder that holds it under its name.
types: env      ## mypy, strict
	@mkdir -p $(TYPING) && ln -sfn ../.. $(TYPING)/cospec
	cd $(TYPING) && MYPYPATH=../../tests ../../$(BIN)/mypy --config-file ../../pyproject.toml \
	  -m cospec -m cospec.errors $(PACKAGES:%=-p cospec.%) $(HELPERS:%=-m %)

# The theme's notice about MkDocs 2 is not ours: the extra `docs` stays below it.
docs: env       ## the documentation site -> .cache/site; a broken link ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "read it:  $(BIN)/python -m http.server --bind 127.0.0.1 --directory .cache/site"

format: env     ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env      ## memory of an export and overhead of the loop; see bench/
	$(BIN)/python -m bench.export_memory
	$(BIN)/python -m bench.loop_overhead

clean:          ## remove the environment, caches and exported bundles
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
