PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: venv demo test lint docs

venv: $(READY)

# The stamp is written last, so that an interrupted install starts again.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[demo,dev]'
	touch $(READY)

demo: venv
	rm -rf work_dirs/demo
	$(BIN)/siglip2-dense demo

test: venv
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: venv
	$(BIN)/python -m siglip2_dense.benchmark.pages docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
