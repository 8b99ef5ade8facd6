# Every target sets up what it needs. Two Airflow versions at hand: make test AIRFLOW=3.1 VENV=.venv-3.1

PYTHON ?= python3
AIRFLOW ?= 3.3
VENV ?= .venv
PYTEST_ARGS ?=
CHAOS_ARGS ?=
FLEET_ARGS ?=
BENCH_ARGS ?=
# Spends credits, so it counts on make's command line only: REAL in the environment does nothing, nor does a key there.
REAL :=
# The emulator calls back, which wakes the tasks.
CALLBACKS ?=

UV_VERSION := 0.13.9
BIN := $(VENV)/bin
UV := $(BIN)/uv
DEMO_ARGS := $(if $(filter 1,$(REAL)),--real) $(if $(filter 1,$(CALLBACKS)),--callbacks)
LOCK := requirements/airflow-$(AIRFLOW).lock
# The name says what the environment was made with; another name makes it anew.
READY := $(VENV)/.ready-airflow-$(AIRFLOW)-$(subst /,_,$(PYTHON))

# Another environment that happens to be active must not answer for ours.
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX UV_SYSTEM_PYTHON
export UV_PYTHON_DOWNLOADS := never
# Importing Airflow writes a configuration file; not into the home folder.
export AIRFLOW_HOME := $(CURDIR)/build/airflow-home-$(AIRFLOW)

COMPILE := $(UV) pip compile -q --python $(BIN)/python pyproject.toml
COMPILE_OPTIONS := --group dev --extra emulator --extra redis --universal --python-version 3.10 --no-emit-index-url \
	--no-emit-find-links --no-header
AS_OF_3_1 := --exclude-newer 2025-10-15 \
	--exclude-newer-package apache-airflow-providers-common-compat=2026-10-31 \
	--exclude-newer-package asgiref=2026-10-31 \
	--exclude-newer-package urllib3=2026-10-31

.DEFAULT_GOAL := help
.PHONY: help demo airflow screenshots test coverage chaos fleet bench ready lint types docs lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  AIRFLOW=lowest|3.1|3.3 (now $(AIRFLOW)), PYTHON (now $(PYTHON)), VENV (now $(VENV)), PYTEST_ARGS"

demo: $(READY) ## Make a day's illustrations with a real Airflow; free, unless REAL=1
	@$(BIN)/python -m tests.support.demo $(DEMO_ARGS)

airflow: $(READY) ## The same, and leave Airflow running until Ctrl-C
	@$(BIN)/python -m tests.support.demo --keep $(DEMO_ARGS)

screenshots: $(READY) ## Make the pictures of README and docs anew, from a running demo; needs chromium
	@$(BIN)/python -m tests.support.screenshots

test: $(READY) ## Lint, types and all tests (lint and types with AIRFLOW=3.3 only)
ifeq ($(AIRFLOW),3.3)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
endif
ifeq ($(strip $(PYTEST_ARGS)),)
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/integration
	@$(BIN)/python -m pytest tests/e2e
else
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)
endif

coverage: $(READY) ## Unit and integration tests once more, measured; fails below the floor in pyproject.toml
	@$(BIN)/python -m pytest -n 2 --dist loadfile --cov=kie_provider tests/unit tests/integration

chaos: $(READY) ## Kill -9 at random, and count what was paid (CHAOS_ARGS="--trials 100 --seed 1")
	@$(BIN)/python -m tests.e2e.chaos $(CHAOS_ARGS)

bench: ## Measure, beside other providers, in an environment of its own (BENCH_ARGS="waiting --quick")
	@$(MAKE) -s --no-print-directory ready VENV=.venv-bench AIRFLOW=3.3 LOCK=requirements/bench.lock
	@.venv-bench/bin/python -m tests.bench $(BENCH_ARGS)

fleet: ## The same with Celery, PostgreSQL and Redis on this machine (FLEET_ARGS="--only kill_workers --seed 3")
	@tests/e2e/fleet/programs
	@$(MAKE) -s --no-print-directory ready VENV=.venv-fleet AIRFLOW=3.3 LOCK=requirements/fleet.lock
	@.venv-fleet/bin/python -m tests.e2e.fleet $(FLEET_ARGS)

ready: $(READY)

lint: $(READY) ## Style and common mistakes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY) ## Static types
	@$(BIN)/mypy

docs: $(READY) ## Build the documentation into build/docs
	@$(BIN)/sphinx-build -W --keep-going docs build/docs

lock: $(UV) ## Write the lock files again after a change of the requirements
	$(COMPILE) requirements/airflow-3.3.in $(COMPILE_OPTIONS) -o requirements/airflow-3.3.lock
	$(COMPILE) requirements/airflow-3.1.in $(COMPILE_OPTIONS) $(AS_OF_3_1) -o requirements/airflow-3.1.lock
	$(COMPILE) --resolution lowest-direct --constraint requirements/airflow-3.1.in \
		--constraint requirements/airflow-lowest.in $(COMPILE_OPTIONS) $(AS_OF_3_1) \
		-o requirements/airflow-lowest.lock
	$(COMPILE) requirements/airflow-3.3.in $(COMPILE_OPTIONS) -o requirements/bench.lock \
		--group bench --constraint requirements/airflow-3.3.lock
	$(COMPILE) requirements/airflow-3.3.in $(COMPILE_OPTIONS) -o requirements/fleet.lock --group fleet

clean: ## Remove what was built and all caches, but no environment
	rm -rf build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find kie_provider dags tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null || { \
		echo "Python 3.10 to 3.13 is needed; $(PYTHON) says: $$($(PYTHON) --version 2>&1 | head -n 1)" >&2; \
		echo "Choose another one, for example: make test PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)

$(READY): pyproject.toml $(LOCK)
	@if ls $(VENV)/.ready-* >/dev/null 2>&1 && [ ! -e $@ ]; then rm -rf $(VENV); fi
	@$(MAKE) -s --no-print-directory $(UV)
	@echo "Installing Airflow $(AIRFLOW) and the development tools into $(VENV) ..."
	@$(UV) pip install -q --python $(BIN)/python --compile-bytecode -r $(LOCK)
	@$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
