# setup, demo, test, check, lock: the whole of what a contributor types.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: setup demo test check lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV) || { echo "sonoforge needs Python 3.11: install it, or say where it is with make PYTHON=/path/to/python3.11"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(BIN)/sonoforge build flows/recipes/demo.yaml

# Three workers for two cores: a third of the time tests wait for servers and other processes. Files as they come, not
# those with many tests first: flows, whose few tests take longest, are not left for the end.
test: setup
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 30

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not slow"
	$(BIN)/pytest -q --doctest-modules flows tasks storage

# Resolves the ranges in pyproject.toml anew. torch first, by number: an unpinned torch is several GB of CUDA.
lock:
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/pip install --quiet torch==2.13.0
	.lock-venv/bin/pip install --quiet ".[dev]"
	{ echo "# Made by 'make lock' from pyproject.toml; Python 3.11."; \
	  .lock-venv/bin/pip freeze --exclude sonoforge | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf .lock-venv

clean:
	rm -rf store out .pytest_cache .ruff_cache
