# `make demo` and `make test` each do all of their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all test-ray docs lint types unit format clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# Dependency groups need pip 25.1 or later.
$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev
	touch $@

$(VENV)/installed-docs: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt --group docs
	touch $@

demo: $(VENV)/installed
	$(BIN)/crashsim train 64-100-50-10:sigmoid --data digits --out demo/digits
	$(BIN)/crashsim score demo/digits --inputs digits --fault neuron-crash --p 0.01 --sites hidden \
		--epsilon 0.5 --json demo/score.json --report demo/report.html

test: lint types unit

test-all: lint types $(VENV)/installed-dev
	$(BIN)/pytest -q -n auto --maxprocesses 8 --dist loadfile -m "slow or not slow"

test-ray: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt "ray>=2.40"
	$(BIN)/pytest -q tests/campaign -k ray

# The site, in docs/_build/html. What pages and examples print is kept beside it, by their own text:
# after a change of crashsim `make clean` makes all of it anew. Links that lead nowhere are warnings.
docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build -W --keep-going --quiet -j 4 -b html docs docs/_build/html
	$(BIN)/pytest -q tests/docs/test_site.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types: $(VENV)/installed-dev
	$(BIN)/mypy

# A process for each core; the tests of a file stay together, as they share fixtures.
unit: $(VENV)/installed-dev
	$(BIN)/pytest -q -n auto --maxprocesses 8 --dist loadfile

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo dist docs/_build docs/gallery docs/reference/generated .mypy_cache .pytest_cache .ruff_cache .hypothesis
