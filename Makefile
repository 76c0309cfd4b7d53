# `make demo` and `make test` set up all they need in .venv, from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all check format lock clean

demo: $(READY)
	$(BIN)/python jobs/run.py

test: $(READY)
	$(BIN)/python -m pytest

test-all: $(READY)
	$(BIN)/python -m pytest -m ""

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Resolves pyproject.toml for every Python and platform (needs the network and `pip install uv`); what
# is locked keeps its version where it can.
lock:
	cp requirements.lock requirements.lock.new
	uv pip compile pyproject.toml --extra clean --extra dev --universal --python-version 3.11 --no-header \
		--no-annotate --quiet --output-file requirements.lock.new
	{ head -n 3 requirements.lock; grep -vE '^(nvidia-|cuda-|triton)' requirements.lock.new; } > .lock
	mv .lock requirements.lock
	rm requirements.lock.new

clean:
	rm -rf .venv outputs *.egg-info .pytest_cache .mypy_cache .ruff_cache
