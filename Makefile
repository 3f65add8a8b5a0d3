# Two commands, each of which sets up what it needs in .venv and says what it does:
#
#   make quickstart    install, then train the embedded student with its teacher (rlad train quickstart)
#   make test          install with the development tools, then lint, types and tests; CI runs the same
#
# PYTHON picks the interpreter (3.11 or later). TORCH_INDEX_URL, where set, is the index that torch alone comes from,
# as in: make quickstart TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH_INDEX_URL ?=
comma := ,
TORCH_PIN := $(shell grep '^torch==' constraints.txt)
SAY := @printf '==> %s\n'

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint types unit clean

help:
	@sed -n 's/^#   //p' Makefile

quickstart: $(VENV)/.installed
	$(SAY) "rlad train quickstart"
	@$(BIN)/rlad train quickstart

test: lint types unit

lint: $(VENV)/.installed-dev
	$(SAY) "lint: ruff check, ruff format --check"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(SAY) "types: mypy --strict src"
	@$(BIN)/mypy --strict src

unit: $(VENV)/.installed-dev
	$(SAY) "tests: pytest"
	@$(BIN)/pytest -q

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'rlad needs Python 3.11 or later: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	$(SAY) "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# torch first and by itself, because it alone may come from another index; the rest then finds it installed.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(SAY) "installing $(TORCH_PIN), the largest download$(if $(TORCH_INDEX_URL),$(comma) from $(TORCH_INDEX_URL))"
	@$(PIP) install $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) '$(TORCH_PIN)'
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.torch
	$(SAY) "installing rlad and what it needs, in the versions of constraints.txt"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(SAY) "installing the development tools"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	$(SAY) "removing $(VENV) and caches; runs/ stays"
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
