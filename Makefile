# `make demo` and `make test` are all a newcomer needs: Linux, Python ≥ 3.11, pip and a C++ compiler (for hnswlib).
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
ONCE ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test lint clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 18

install: $(INSTALLED)  ## the environment in .venv, with the exact versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[export,serve,cpu,dev]'
	@touch $@

demo: install  ## prepare → train → export → serve on 127.0.0.1:$(PORT) with the example's data; ONCE=1 ends after a few answers
	$(BIN)/python examples/keywords/demo.py --folder demo --port $(PORT) $(if $(ONCE),--once)

test: install  ## the whole test suite
	$(BIN)/python -m pytest

lint: install  ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove the demo and the environment
	rm -rf demo $(VENV)
