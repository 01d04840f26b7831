# Both targets do all their set-up on a fresh machine: a virtual environment in .venv, pinned versions, the package.
PYTHON ?= python3
BIN := .venv/bin
QUICK_PYTEST := $(BIN)/python -m pytest -q -m "not slow"

.PHONY: quickstart test test-quick lint install clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: install
	$(BIN)/sparsepo quickstart

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q

test-quick: lint
	$(QUICK_PYTEST)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
