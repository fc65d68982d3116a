# `make train` and `make test` set up everything they need on first use. Further arguments: make test ARGS="-k zoo".
# Another set of extras: make test EXTRAS=dev,oracle.

PYTHON ?= python3
ARGS ?=
EXTRAS ?= dev
VENV := .venv
COMMA := ,
INSTALLED := $(VENV)/installed-$(subst $(COMMA),-,$(EXTRAS))

.PHONY: train test

train: $(INSTALLED)
	@$(VENV)/bin/python -m experiments.train --config=experiments/configs/stdlib.py --workdir=runs/stdlib $(ARGS)

test: $(INSTALLED)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/python -m pytest -q --numprocesses=auto $(ARGS)

# The stamp is older than setup.cfg when the dependencies may have changed.
$(INSTALLED): setup.cfg pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "error: no $(PYTHON) on the PATH: install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old: 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "error: $(PYTHON) cannot make virtual environments: install its venv package, such as python3-venv" >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@
