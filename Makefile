# Everything a newcomer types. Needs only python3.11, git, make and pip.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.glasshouse-installed
DOCS_STAMP := $(VENV)/.glasshouse-docs
REPORT ?= glasshouse-report
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK = 1
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help setup audit test test-slow check format docs bench studies ledger torture clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install the project with pinned versions

$(STAMP): pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup.sh
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@echo "Installing the documentation tools into $(VENV) ..."
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	@touch $@

audit: $(STAMP) ## audit the embedded organism; the report goes to ./glasshouse-report/
	@bash scripts/audit.sh "$(BIN)" "$(REPORT)"

test: $(STAMP) check ## all checks and tests that CI runs
	$(PYTEST) -q -m "not slow" -n 2 --dist loadfile --durations=15

test-slow: $(STAMP) ## the minutes-long tests too
	$(PYTEST) -q

check: $(STAMP) ## format, lint, types, layers
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## repair format and imports
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

docs: $(DOCS_STAMP) ## build the documentation site, warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict && echo 'The site is in site/'

bench: $(STAMP) ## build one environment per peer under .bench/ and compare with it
	@bash scripts/bench.sh "$(PYTHON)"
	$(BIN)/python -m benchmarks ekfac

studies: $(STAMP) ## run the studies of the laptop configuration and store their claims (resumable)
	@bash scripts/studies.sh "$(BIN)"

ledger: $(STAMP) ## render docs/ledger.md from the stored claims
	$(BIN)/glasshouse ledger --render

torture: $(STAMP) ## thirty random kills of an audit and a trace, results compared
	$(BIN)/python scripts/torture.py --kills 30

clean: ## remove build products, never runs or the cache
	rm -rf site dist build .pytest_cache .mypy_cache .ruff_cache $(REPORT)
