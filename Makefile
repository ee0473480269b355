# make train [ARGS="..."]    train; flags as in `python -m jaxvae.train --help`
# make test                  the whole test suite
# make lint                  ruff and mypy
# make tensorboard           watch the runs under runs/
#
# Each needs nothing but python3 (>= 3.11) with pip and venv, and make: it creates .venv first.
# PYTHON=python3.13 VENV=.venv-3.13 take another interpreter and another environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train test lint format tensorboard clean

train: $(VENV)/.installed
	$(BIN)/python -m jaxvae.train $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tensorboard: $(VENV)/.installed
	$(BIN)/tensorboard --logdir runs $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Debian's python3 may come without ensurepip, which venv needs: then pip itself puts pip there.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "jaxvae needs Python 3.11 or newer: $(PYTHON) is older; name another with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
		&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed
