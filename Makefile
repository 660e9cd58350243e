# `make demo` and `make test` are all a newcomer needs: Linux, Python ≥ 3.11, pip and a C++ compiler (for hnswlib).
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
ONCE ?=
TESTS ?= tests
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

HASHED := --quiet --disable-pip-version-check --require-hashes
TORCH := $(shell sed -n 's/^torch==\([^ ]*\).*/\1/p' constraints.txt)
UPGRADE ?=
SBOM_PYTHON ?= $(BIN)/python

.PHONY: help install lock demo test coverage lint docs hooks wheel sbom images clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 18

install: $(INSTALLED)  ## the environment in .venv: exact versions from constraints.txt, hashes checked

# 1. pip, because older releases do not read hashes from a constraints file, and the build tools. 2. PyTorch's CPU build,
# if pip is configured with an index that has it; the build on PyPI brings 3 GB of CUDA. 3. Everything else. 4. The
# project itself, without network access.
$(INSTALLED): pyproject.toml constraints.txt docker/constraints-torch-cuda.txt .ci/requirements-build.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(HASHED) --requirement .ci/requirements-build.txt
	@$(BIN)/python -m pip install $(HASHED) --no-deps --constraint constraints.txt 'torch==$(TORCH)+cpu' || \
		echo 'Installing torch with CUDA from PyPI. For the CPU build, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu'
	$(BIN)/python .ci/requirements.py export serve cpu dev >$(VENV)/requirements.txt
	$(BIN)/python -m pip install $(HASHED) --no-build-isolation --constraint constraints.txt \
		--constraint docker/constraints-torch-cuda.txt --requirement $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .
	@touch $@

lock:  ## update versions and hashes after a change in pyproject.toml; UPGRADE=name or UPGRADE=all for newer versions
	@test -x $(BIN)/uv || $(MAKE) --no-print-directory install
	$(BIN)/python .ci/lock.py $(if $(UPGRADE),--upgrade $(UPGRADE))

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
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python .ci/try_wheel.py dist --constraints constraints.txt

sbom: install  ## dist/sbom.cdx.json, a CycloneDX SBOM of the environment; SBOM_PYTHON=… for another environment
	@mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-format JSON \
		--spec-version 1.6 --output-reproducible --validate --output-file dist/sbom.cdx.json $(SBOM_PYTHON)

images: install  ## update the digests of the base images; needs docker and network access
	$(BIN)/python docker/pin_images.py

clean:  ## remove what was made: the demo, dist, measurements, the environment
	rm -rf demo dist site .coverage $(VENV)
