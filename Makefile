# Everything starts from a fresh clone with Python 3.11+ and make:
#   make demo     set up, train a small model, delete facts from it, prove it, write a report
#   make test     set up and run the tests (make slow: the minutes-long ones)
#   make check    lint, format and types
#   make results  the tables of docs/reproductions.md, from the results that are committed
# Options: PYTHON=python3.12, VENV=/elsewhere, OUT=runs/mine, PIP_ARGS="--extra-index-url ...", ARGS="-k request"

PYTHON   ?= python3
VENV     ?= .venv
OUT      ?= runs/demo
WORKERS  ?= 2
PIP_ARGS ?=
ARGS     ?=

BIN   := $(VENV)/bin
READY := $(VENV)/.ready
PIP   := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet $(PIP_ARGS)

# Nothing here needs the hub; asking for it must fail at once instead of hanging in a retry.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# One thread per test worker: more of them fight over the same cores.
PYTEST  := OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help setup demo test slow check results clean

help:
	@sed -n 's/^#   *make /make /p' Makefile

setup: $(READY)

# The stamp makes a second setup free, and is written last, so that an interrupted setup is done again.
# torch goes first: left to the range in pyproject.toml, pip may draw another build of it.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "expunge needs Python 3.11 or newer, and '$(PYTHON)' was not found. Try: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "expunge needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(OFFLINE) $(BIN)/expunge demo --out $(OUT)

test: $(READY)
	$(PYTEST) -m "not slow" $(ARGS)

slow: $(READY)
	$(PYTEST) -m slow $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: $(READY)
	sed '/made by `make results`/q' docs/reproductions.md > docs/.reproductions.md
	echo >> docs/.reproductions.md
	$(OFFLINE) $(BIN)/expunge reproduce --table docs/results/reproductions >> docs/.reproductions.md
	mv docs/.reproductions.md docs/reproductions.md

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
