# make demo         installs into .venv and runs configs/digits_50pct.yaml, one to two minutes after installation
# make test         installs everything the tests need into .venv, and runs them
# make check        ruff and mypy
# make docs         the documentation in build/docs, offline once it is installed
# make notebook     examples/tour.ipynb from docs/tutorial.md, run
# make wheel        a wheel in build/
# make bench        training on this CPU against named peers
# make faults       kills, fills and breaks stores for about 20 minutes
# make test-extern  has TRAK, dattri and quanda read exports, in an environment of their own
# make clean        removes .venv, .venv-extern and build; what lies in runs/ stays

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test test-extern check docs notebook wheel bench faults clean

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

demo: .venv/.core
	$(BIN)/datamodels run configs/digits_50pct.yaml

test: .venv/.test
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ARGS)

test-extern: .venv/.test .venv-extern/.done
	.venv-extern/bin/python -m pytest tests/extern $(ARGS)

check: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q docs build/docs
	@echo build/docs/index.html

notebook: .venv/.test
	$(BIN)/python -m docs.notebook examples/tour.ipynb

wheel: .venv/bin/pip
	rm -rf build
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build .

bench: .venv/.core
	$(BIN)/python -m bench.cpu --data-root $(or $(DATA),data)

faults: .venv/.test
	$(BIN)/python -m tests.faults.long

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $$($(PYTHON) --version) found" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || bash .ci/packages --needed python3-venv
	rm -rf .venv
	$(PYTHON) -m venv .venv

.venv/.core: .venv/bin/pip pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

.venv/.test: .venv/.core
	bash .ci/packages strace slurmctld slurmd slurm-client
	bash .ci/packages chromium fonts-dejavu-core
	bash .ci/packages dataset-fashion-mnist
	$(PIP) -e .[test,docs]
	bash .ci/ffcv $(BIN)/pip
	touch $@

.venv-extern/.done: tests/extern/requirements.txt constraints.txt .venv/bin/pip
	rm -rf .venv-extern
	$(PYTHON) -m venv .venv-extern
	.venv-extern/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r $<
	touch $@

.venv/.docs: .venv/.core
	$(PIP) -e .[docs]
	touch $@

clean:
	rm -rf .venv .venv-extern build
