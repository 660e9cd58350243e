# `make demo` and `make test` need Linux, Python ≥ 3.11, pip and a C++ compiler (for hnswlib).
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
ONCE ?=
TESTS ?= tests
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PINS := pyproject.toml constraints.txt docker/constraints-torch-cuda.txt .ci/requirements-build.txt
# Each worker has its own services and imports of torch; more than four would mostly take memory.
# In order of collection, the slow files (faults, integration) come before the fast ones (unit).
WORKERS ?= --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

HASHED := --quiet --disable-pip-version-check --require-hashes
TORCH := $(shell sed -n 's/^torch==\([^ ]*\).*/\1/p' constraints.txt)
UPGRADE ?=
SBOM_PYTHON ?= $(BIN)/python

.PHONY: help install install-dev lock demo test coverage lint docs hooks wheel sbom images clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

# Install the packages of some extras: exact versions from constraints.txt, hashes checked.
define install_extras
	$(BIN)/python .ci/requirements.py $(1) >$(VENV)/requirements.txt
	$(BIN)/python -m pip install $(HASHED) --no-build-isolation --constraint constraints.txt \
		--constraint docker/constraints-torch-cuda.txt --requirement $(VENV)/requirements.txt
endef

install: $(INSTALLED)  ## create .venv with the packages that the demo needs
install-dev: $(INSTALLED_DEV)  ## add the packages that tests, linters, docs and builds need

# 1. pip, because older releases do not read hashes from a constraints file, and the build tools. 2. PyTorch's CPU build,
# if pip is configured with an index that has it; the build on PyPI brings 3 GB of CUDA. 3. The other packages. 4. The
# project itself, without network access.
$(INSTALLED): $(PINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(HASHED) --requirement .ci/requirements-build.txt
	@$(BIN)/python -m pip install $(HASHED) --no-deps --constraint constraints.txt 'torch==$(TORCH)+cpu' || \
		echo 'Installing torch with CUDA from PyPI. For the CPU build, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu'
	$(call install_extras,export serve cpu)
	$(BIN)/python -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(call install_extras,export serve loadtest cpu dev)
	@touch $@

lock:  ## update versions and hashes after a change in pyproject.toml; UPGRADE=name or UPGRADE=all for newer versions
	@test -x $(BIN)/uv || $(MAKE) --no-print-directory install-dev
	$(BIN)/python .ci/lock.py $(if $(UPGRADE),--upgrade $(UPGRADE))

demo: install  ## prepare → train → export → serve the example on port 8000 (PORT=…); ONCE=1 stops after a few queries
	$(BIN)/python examples/keywords/demo.py --folder demo --port $(PORT) $(if $(ONCE),--once)

test: install-dev  ## run the test suite; TESTS=tests/unit runs a part, WORKERS= runs it in one process
ifdef COVERAGE
	@rm -rf .coverage && mkdir .coverage
	DIPTYCH_SANDBOX=off $(BIN)/coverage run -m pytest $(WORKERS) $(TESTS)
	$(BIN)/coverage combine --quiet .coverage
	$(BIN)/coverage report
else
	$(BIN)/python -m pytest $(WORKERS) $(TESTS)
endif

coverage:  ## run the test suite and measure line coverage, subprocesses included; fails below the minimum
	@$(MAKE) --no-print-directory test COVERAGE=1

lint: install-dev  ## check style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install-dev  ## build the site in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

hooks: install-dev  ## install git hooks that run the checks of `make lint` before each commit
	$(BIN)/pre-commit install

wheel: install-dev  ## build sdist and wheel in dist/ and test the wheel in a fresh environment
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python .ci/try_wheel.py dist --constraints constraints.txt

sbom: install-dev  ## write dist/sbom.cdx.json, a CycloneDX SBOM of the environment (SBOM_PYTHON=… for another one)
	@mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-format JSON \
		--spec-version 1.6 --output-reproducible --validate --output-file dist/sbom.cdx.json $(SBOM_PYTHON)

images: install  ## update the digests of the base images; needs docker and network access
	$(BIN)/python docker/pin_images.py

clean:  ## remove the demo, dist, site, coverage data and .venv
	rm -rf demo dist site .coverage $(VENV)
