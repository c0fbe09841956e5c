# Needs make and Python 3.11 or later, nothing else: everything is installed into .venv.
PYTHON ?= python3
ARGS ?=
# Test processes. Most of their time is waiting for servers, so more than there are cores pays.
WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
# Errors only: among pip's and setuptools' remarks they would not be found.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test coverage matrix check docs bench clean

help:
	@echo "make demo      run the example: PostgreSQL, the chat and GraphiQL, at a URL that it prints"
	@echo "make test      run all tests; what is not installed is skipped by name (ARGS='-k word' goes to pytest)"
	@echo "make check     ruff and mypy"
	@echo "make coverage  run all tests and measure them; fails below 95 % of lines and branches, or of branches alone"
	@echo "make matrix    run some tests with other Pythons, Djangos, PostgreSQLs and dependencies (ARGS=-l lists them)"
	@echo "make docs      build the documentation, and run its examples (into build/docs)"
	@echo "make bench     measure everything, for an hour or more (ARGS='--quick', ARGS='write-cost', ARGS=--help)"
	@echo "make clean     remove the environment and everything that was made"
	@echo
	@echo "PYTHON=python3.12 make ... takes that Python; REQUIRE_ALL=1 make test fails where a test is skipped."

# exec: the demo takes the place of the shell, so that it hears of Ctrl-C itself.
demo: $(VENV)/installed-demo
	@exec $(BIN)/python -m example.demo $(ARGS)

test: $(VENV)/installed-test
	@echo "Running the tests"
	@exec $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

coverage: $(VENV)/installed-test
	@echo "Running the tests, measured"
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest -n $(WORKERS) $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report
	@$(BIN)/python -m coverage json --quiet -o .coverage.json
	@$(BIN)/python -c 'import json, sys; \
		alone = json.load(open(".coverage.json"))["totals"]["percent_branches_covered"]; \
		print(f"Branches alone: {alone:.1f} %"); sys.exit(alone < 95)'

matrix: $(VENV)/installed-matrix
	@exec $(BIN)/nox $(ARGS)

check: $(VENV)/installed-test
	@echo "Checking style"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check .; exit 1; }
	@echo "Checking types"
	@$(BIN)/mypy

docs: $(VENV)/installed-docs
	@echo "Building the documentation into build/docs"
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet -d build/doctrees -b html docs build/docs
	@echo "Running its examples"
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet -d build/doctrees -b doctest docs build/doctest

bench: $(VENV)/installed-bench
	@exec $(BIN)/python -m benchmarks $(ARGS)

clean:
	@echo "Cleaning up"
	@rm -rf $(VENV) .nox .coverage .coverage.* .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment for all: the tests need what the demo needs, and more.
$(VENV)/installed-%: setup.cfg pyproject.toml | $(VENV)/made
	@echo "Installing what make $* needs into $(VENV), once"
	@$(PIP_INSTALL) --editable '.[$*]'
	@touch $@

$(VENV)/made:
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON): install Python 3.11 or later, or name one with PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version) is too old: Python 3.11 or later is needed, name one with PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) lacks the venv module: install it (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --upgrade pip
	@touch $@
