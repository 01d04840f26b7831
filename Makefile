# Both targets do all their set-up on a fresh machine: a virtual environment in .venv, pinned versions, the package.
PYTHON ?= python3
BIN := .venv/bin
# Two at a time, a file in one process; Ray's workers and the tests' own threads share the cores.
# The hundreds of processes that they start compile no module that another one has compiled.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PACKAGES := .venv/lib/python*/site-packages
# Large, and imported by few processes or by none: compiled by the first that does import them.
UNUSED := tests|torch/testing/_internal|backrefs|cfnlint|databricks|graphql|lm_eval|mlflow|moto|mypy|narwhals|nltk|rllib|sklearn|sqlalchemy|transformers/models/(?!auto/|llama/)[a-z0-9_]+
# Its exit code counts files of packages in the syntax of a later Python, so it is not looked at.
COMPILE := $(BIN)/python -m compileall -qq -x '/($(UNUSED))/'

.PHONY: quickstart test test-quick test-exhaustive lint docs lock audit install clean

install: .venv/.installed

# A newer pip resolves in a third of the time. It unpacks on one core while the other one compiles
# torch; then both compile the rest.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) "pip>=25.1"
	$(PIP) --no-compile --constraint constraints.txt torch
	$(COMPILE) $(PACKAGES)/torch $(PACKAGES)/sympy & $(PIP) --no-compile --constraint constraints.txt --editable ".[dev]" && wait
	$(COMPILE) -j 0 $(PACKAGES) || true
	touch $@

quickstart: install
	$(BIN)/sparsepo quickstart

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST)

test-quick: lint
	$(PYTEST) -m "not slow"

# Matrices in their widest form, of which the suite has a part.
test-exhaustive: lint
	$(PYTEST) --exhaustive -m exhaustive

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -f .ci/mkdocs.yml

# Every package for this PYTHON, with hashes: locks/pythonX.Y.txt. Asks the package index.
lock:
	$(PYTHON) .ci/lock.py

# The locks against advisories on this machine (a clone of pypa/advisory-database): ADVISORIES=DIR.
audit: install
	$(BIN)/python .ci/audit.py "$(ADVISORIES)"

clean:
	rm -rf .venv build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
