# Set-up: every target below makes .venv first where it is missing.
PYTHON ?= python3.11
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench constraints

help: ## this list
	@grep -E '^[.a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([.a-z-]+):.*## /  \1\t/' | expand -t 18

.venv: $(BIN)/.installed ## the environment alone, from pyproject.toml and constraints.txt
$(BIN)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; install it or name another with PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the pinned packages into .venv (about 2 minutes) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
.PHONY: .venv

demo: .venv ## the main job on a small made-up world with known truth, under demo/
	$(BIN)/python -m jobs.demo --workdir demo

test: lint ## what CI runs
	$(BIN)/python -m pytest -m "not slow"

test-all: lint ## slow tests too
	$(BIN)/python -m pytest

lint: .venv ## ruff, pyright and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: .venv ## every benchmark of benchmarks/ (long)
	$(BIN)/python -m benchmarks

constraints: .venv ## pin what is installed now
	{ echo "# Exact versions of everything that is installed; regenerate with 'make constraints'."; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.txt
