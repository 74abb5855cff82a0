# The commands of the project. Everything runs in .venv, which the first command creates.
#
#   make demo                the whole story on this machine: pictures, captions, CLIP, probes, report
#   make demo ARGS=--quick   the same plumbing in under two minutes (ARGS go to `capwright demo`)
#   make test                the tests, a process for each core (TESTS="tests/report -k escape" for some of them)
#   make lint                ruff, mypy, import contract
#   make bench               ratios against peers
#   make docs                docs/commands.md from the commands themselves
#
# PYTHON     the Python (3.11 or newer) that makes the environment.
# PIP_ARGS   goes to every pip install, for example to choose the index of a CPU build of PyTorch.

PYTHON   ?= python3
PIP_ARGS ?=
ARGS     ?=
TESTS    ?=
OUT      ?= runs/demo

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench docs clean

help:
	@sed -n 's/^#   \(make.*\)/\1/p' Makefile

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Capwright needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || \
	  { echo "$(PYTHON) cannot create an environment: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) "torch>=2.6" "torchvision>=0.21"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[dev]"
	@touch $@

demo: .venv/.installed
	$(BIN)/capwright demo --out $(OUT) $(ARGS)

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 $(TESTS)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.installed
	@set -e; found=; for file in benchmarks/*.py; do \
	  [ -e "$$file" ] || continue; found=1; echo "== $$file" >&2; $(BIN)/python "$$file"; \
	done; [ -n "$$found" ] || echo "There are no benchmarks yet: benchmarks/ holds no .py file." >&2

docs: .venv/.installed
	$(BIN)/python docs/commands.py > docs/commands.md.new
	mv docs/commands.md.new docs/commands.md

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
