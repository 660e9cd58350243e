# `make demo` and `make test` are all a newcomer needs: Linux, Python ≥ 3.11, pip and a C++ compiler (for hnswlib).
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
ONCE ?=
TESTS ?= tests
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test coverage lint docs hooks wheel clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 18

install: $(INSTALLED)  ## the environment in .venv, with the exact versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[export,serve,cpu,dev]'
	@touch $@

demo: install  ## prepare → train → export → serve the example on port 8000 (PORT=…); ONCE=1 ends after a few answers
	$(BIN)/python examples/keywords/demo.py --folder demo --port $(PORT) $(if $(ONCE),--once)

test: install  ## the whole test suite; TESTS=tests/unit runs a part
ifdef COVERAGE
	@rm -rf .coverage && mkdir .coverage
	DIPTYCH_SANDBOX=off $(BIN)/coverage run -m pytest $(TESTS)
	$(BIN)/coverage combine --quiet .coverage
	$(BIN)/coverage report
else
	$(BIN)/python -m pytest $(TESTS)
endif

coverage:  ## the same, and which lines it reached, commands and engines included; fails below the floor
	@$(MAKE) --no-print-directory test COVERAGE=1

lint: install  ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install  ## the site in site/, strictly: a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

hooks: install  ## have git run what `make lint` runs before every commit
	$(BIN)/pre-commit install

wheel: install  ## sdist and wheel in dist/, the wheel tried in a fresh environment without this folder
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python .ci/try_wheel.py dist --constraints constraints.txt

clean:  ## remove what was made: the demo, dist, measurements, the environment
	rm -rf demo dist site .coverage $(VENV)
