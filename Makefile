# `make` builds .venv, `make demo` shows what twinrun does, `make test` is the quick suite.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2
PYTEST_ARGS ?=
# Each worker computes on one thread; waiting threads sleep, so that two workers on two cores do not push each other aside.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --durations=20
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: install demo test test-slow test-all lint format bench clean

install: $(STAMP)

# torch goes first, alone, so that a failed download of the largest package is seen at once.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "twinrun needs Python 3.11 or later: make PYTHON=python3.11")'
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/twinrun demo

test: $(STAMP)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-all: $(STAMP)
	$(PYTEST) $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every benchmarks/*.py is a script, except names that start with an underscore. Exit code 3: no GPU here.
bench: $(STAMP)
	shopt -s nullglob; \
	scripts=(benchmarks/[!_]*.py); \
	[ "$${#scripts[@]}" -gt 0 ] || { echo "bench: no script in benchmarks/" >&2; exit 2; }; \
	for script in "$${scripts[@]}"; do \
	  echo "== $$script"; \
	  $(BIN)/python "$$script" || [ $$? = 3 ]; \
	done

# Leaves .venv: remove that by hand.
clean:
	rm -rf build/lib build/bdist.* dist twinrun-out .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
