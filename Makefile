# `make demo` and `make test` each set everything up themselves; a machine needs Python 3.11 or newer, pip and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One more than the two cores of the smallest machine: tests wait as often as they work.
CORES ?= --numprocesses 3 --dist worksteal
# What pytest makes of the tests is kept for the other processes and for the next run, also where the environment forbids.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

.PHONY: demo test test-long drill lint benchmark conformance build clean

demo: $(VENV)/runs
	$(BIN)/bitactor demo

test: lint
	$(PYTEST) $(CORES)

# The same tests with large numbers, other ones each time; what fails is kept in .hypothesis/ and tried first in the next run.
test-long: lint
	TEST_LONG=1 $(PYTEST) $(CORES)

# Loads of minutes.
drill: $(VENV)/develops
	$(PYTEST) -m drill -s

lint: $(VENV)/develops
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright

# What is measured beside others (DBOS) needs them too: `.venv/bin/pip install --group peers`.
benchmark: $(VENV)/develops
	$(BIN)/python -m benchmarks

# Runs the claims one by one and writes docs/conformance.md.
conformance: $(VENV)/develops
	$(BIN)/python -m tests.conformance.table

build: $(VENV)/develops
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# `--without-pip` because not every Python can bring its own; the pip at hand installs a fresh one.
$(VENV)/bin/pip:
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --disable-pip-version-check --quiet --python $(BIN)/python install "pip>=25.1"

$(VENV)/runs: $(VENV)/bin/pip pyproject.toml
	$(BIN)/pip --disable-pip-version-check --quiet install --editable .
	touch $@

$(VENV)/develops: $(VENV)/runs
	$(BIN)/pip --disable-pip-version-check --quiet install --group dev
	touch $@
