# One environment (.venv) serves every target; each target makes what it needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TYPING := .cache/typing
CLIENTS := .cache/clients
WORKERS ?= 2
PYTHONS ?= python3.10 python3.13
PACKAGES := bench calibration export models runtime
HELPERS := $(basename $(notdir $(filter-out tests/test_%,$(wildcard tests/*.py))))

DEMO_PROMPT := "Mia has 58 keys and Sam 55 more than Mia. How many in all?"
# The target alone gets this one wrong (the answer is 2500); the draft was trained on more of its kind.
COLLAB_PROMPT := "What is 625 times 4?"

.DEFAULT_GOAL := help
.PHONY: help env demo test browser test-trt device-kit test-clients test-pythons quick lint types docs format attack bench release clean

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

# Debian's Chromium, for the tests that open pages; elsewhere they are skipped with a reason.
browser:        ## install Chromium for the browser tests, where apt-get may
	@if command -v chromium chromium-browser google-chrome >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "no Chromium here, and apt-get needs root: the browser tests will be skipped"; fi

test: env browser types lint ## whole suite, lint and types
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile

test-trt: env   ## every model through TensorRT's parser and builder, old versions too, and docs/
	cd tests && ../$(BIN)/python -W ignore tensorrt_matrix.py && ../$(BIN)/python tensorrt_table.py
	$(BIN)/pytest tests/runtime/tensorrt $(wildcard tests/export/test_tensorrt*.py)

# The small pair in both forms, for any TensorRT, and SmolLM2 in int4 for a Jetson.
device-kit: env ## an archive for owners of a device -> .cache/kit/device-kit.zip
	mkdir -p .cache/kit && rm -f .cache/kit/*.whl
	$(BIN)/python -m build --wheel --outdir .cache/kit . >/dev/null
	for form in portable scatter; do $(BIN)/cospec-export --target tiny --precision fp16 --lowering $$form \
	  --force --output .cache/kit/tiny-$$form; done
	$(BIN)/cospec-export --target "$$(cd tests && ../$(BIN)/python -c 'import smollm2; print(smollm2.smollm2_gguf_path())')" \
	  --draft none --trt --weights int4 --device orin-nano-jp6 --force --output .cache/kit/smollm2
	$(BIN)/cospec-kit .cache/kit/tiny-portable .cache/kit/tiny-scatter .cache/kit/smollm2 \
	  --make .cache/kit/device-kit.zip --wheel .cache/kit/*.whl

# langchain, litellm and instructor disagree with our pins, so they have an environment of their own.
test-clients: env ## other projects' clients against the server with the tiny pair
	$(BIN)/cospec-export --target tiny --arbiter none --force --output $(CLIENTS)/tiny
	$(PYTHON) -m venv $(CLIENTS)/venv
	$(CLIENTS)/venv/bin/pip install --quiet --disable-pip-version-check \
	  --requirement tests/runtime/serve/clients.txt --editable ".[cpu,serve,grammar]"
	COSPEC_TINY_BUNDLE=$(CURDIR)/$(CLIENTS)/tiny $(CLIENTS)/venv/bin/python -m pytest tests/runtime/serve/test_clients.py

test-pythons:   ## the runtime's tests in bare environments of Python 3.10 and 3.13, without torch
	@for python in $(PYTHONS); do \
	  $$python -c '' 2>/dev/null || { echo "SKIPPED: $$python is not installed"; continue; }; \
	  $$python -m venv .cache/$$python && .cache/$$python/bin/pip install --quiet --constraint constraints.txt \
	    --editable ".[cpu,serve]" pytest pytest-xdist hypothesis openai && \
	  .cache/$$python/bin/pytest --numprocesses $(WORKERS) --dist loadfile -q tests/runtime \
	    || exit 1; done

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

docs: env       ## the documentation site -> .cache/site; a broken link or a warning ends it
	$(BIN)/python docs/build.py
	@echo "read it:  $(BIN)/python -m http.server --bind 127.0.0.1 --directory .cache/site"

format: env     ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Half an hour on two cores. `make test` runs a bounded part. ATTACK=--full has the counts of docs/security.md.
attack: env     ## attack the server, bundles, commands, templates and the sandbox with thousands of cases
	$(BIN)/cospec-export --target tiny --force --output .cache/attack/tiny
	cd tests && ../$(BIN)/python -m attacks.all_campaigns ../.cache/attack/tiny $(ATTACK)

release: env    ## build wheel and sdist, check both in fresh environments, and say what to tag
	$(BIN)/python tests/release.py

bench: env      ## memory of an export and overhead of the loop; see bench/
	$(BIN)/python -m bench.export_memory
	$(BIN)/python -m bench.loop_overhead

clean:          ## remove the environment, caches and exported bundles
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
