# Everything a newcomer needs: `make demo` and `make test` set up their own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
PYTHONS ?= python3.11 python3.12 python3.13

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs base-model check-wheel check-nnunet check-pythons bundle check-bundle release format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# torch comes first and alone, so that the constraint decides its build.
$(VENV)/runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "metricunet needs Python 3.11 or later"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/development: $(VENV)/runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/runtime ## phantoms, training, prediction, evaluation and a report, in OUT (default: demo)
	$(BIN)/metricunet demo --output $(OUT)

# A test process for each core, each with one thread: threads that wait for one another would take twice as long.
test: lint $(VENV)/development ## the checks and the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/development ## style, types, and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/development ## the site, in build/site, without a warning or a dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python docs/site/check.py build/site

base-model: $(VENV)/runtime ## train a model by models/base.yaml from nothing, in place of the shipped one (two hours of two cores)
	resume=$$(test -f build/base-model/checkpoints/state.json && echo --resume); \
	$(BIN)/metricunet train --config src/metricunet/models/base.yaml --workers 2 -o build/base-model $$resume
	cp build/base-model/model.safetensors src/metricunet/models/base.safetensors

check-wheel: $(VENV)/development ## build and check the archives, install the wheel in an environment of its own, and use it
	$(BIN)/python tests/e2e/check_wheel.py

check-nnunet: $(VENV)/runtime ## train the metric branch within the real nnU-Net, in an environment of its own
	OMP_NUM_THREADS=1 $(BIN)/python tests/e2e/check_nnunet.py

check-pythons: $(VENV)/development ## check-wheel for each Python of PYTHONS (programs or paths)
	for python in $(PYTHONS); do $(BIN)/python tests/e2e/check_wheel.py --python $$python || exit 1; done

bundle: docs ## wheels, model and pages for a machine without internet, with an install script, in build/bundle
	$(BIN)/python deploy/bundle.py

check-bundle: $(VENV)/development ## install that bundle where there is no network, and use it
	$(BIN)/python tests/e2e/check_bundle.py

release: $(VENV)/development ## check-wheel, and the archives with their bill of materials in dist, if HEAD is tagged
	$(BIN)/python tests/e2e/check_wheel.py --release --keep dist

format: $(VENV)/development ## rewrite the code in the project's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the targets above made, the environment included
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
