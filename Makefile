# make train [ARGS="..."]    train; flags as in `python -m jaxvae.train --help`
# make test                  the tests, but for the long ones: under 12 minutes on two cores
# make test-fast             the quick tests: for daily work
# make test-long             the long ones: whole runs, jobs of several processes, browsers, the pages of the docs
# make lint                  ruff and mypy
# make docs                  the documentation, into site/
# make notebooks             executes docs/notebooks/*.py, which are the source of the notebooks beside them
# make mutations             alters jaxvae in some 300 places, one at a time: each must make a test fail
# make tensorboard           watch the runs under runs/
#
# Each needs nothing but python3 (>= 3.11) with pip and venv, and make: it creates .venv first.
# PYTHON=python3.13 VENV=.venv-3.13 take another interpreter and another environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The suite starts many processes, each of which would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train test test-fast test-long lint format docs notebooks mutations tensorboard clean

train: $(VENV)/.installed
	$(BIN)/python -m jaxvae.train $(ARGS)

test: $(VENV)/.installed-test
	$(PYTEST) -m "not long" $(ARGS)

test-fast: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and not long" $(ARGS)

test-long: $(VENV)/.installed-test
	$(PYTEST) -m long $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)
	@echo "site/ is built; to read it: $(BIN)/python -m http.server --directory site"

notebooks: $(VENV)/.installed-docs
	$(BIN)/jupytext --to ipynb --execute docs/notebooks/*.py

mutations: $(VENV)/.installed-test
	$(BIN)/python experiments/mutations/mutations.py

tensorboard: $(VENV)/.installed
	$(BIN)/tensorboard --logdir runs $(ARGS)

clean:
	rm -rf $(VENV) site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Debian's python3 may come without ensurepip, which venv needs: then pip itself puts pip there.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "jaxvae needs Python 3.11 or newer: $(PYTHON) is older; name another with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
		&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	touch $@

# Modules are compiled when they are first imported: most never are.
PIP := $(BIN)/python -m pip install --quiet --no-compile --editable

$(VENV)/.installed: pyproject.toml | $(VENV)/.created
	$(PIP) .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.created
	$(PIP) '.[test]'
	touch $@ $(VENV)/.installed

# After the test extra: under `make -j`, two pips would be in each other's way.
$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.installed-test
	$(PIP) '.[docs]'
	touch $@ $(VENV)/.installed
