# make demo   set up, then build labels, train, screen and rank, all without data or network
# make test   set up, then every check
# Both work on a fresh clone; set-up happens once and again only when what it depends on changes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first Python of at least 3.11; say PYTHON=/path/to/python to take another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
# One version for everybody, so that every machine tests the same build.
TORCH := 2.13.0
# Brings a real tritonserver; used for its binary alone (its own dependencies would pull numpy below 2).
TRITON := nvidia-pytriton==0.7.0
EXTRAS := mpi,data,demo,train,pyg,export,uncertainty,serve,torchsim,trajectories,properties,dev
STAMP := $(VENV)/installed
NATIVE := $(wildcard atomsieve/native/*.cpp atomsieve/native/*.h)
# Tests of the server are skipped only where there cannot be one: a wheel that was installed must be found.
PYTEST = OMP_NUM_THREADS=1 ATOMSIEVE_NEEDS_TRITON="$$(cat $(VENV)/triton 2>/dev/null || true)" $(BIN)/python -m pytest

# Processes that share the tests, each taking the next file; 0 runs them one after another. More of them than cores
# upsets tests that send signals. tests/conftest.py says which files come first: the longest.
WORKERS ?= 2
SHARED = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# What pyproject.toml asks for, one requirement a line.
REQUIREMENTS = import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*p["dependencies"], *(r for e in sys.argv[1].split(",") for r in p["optional-dependencies"][e]), sep="\n")

.PHONY: help venv lint types unit mpi e2e suite test nightly demo bench clean

help:  ## list the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python of at least 3.11 found; say make PYTHON=/path/to/python" >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml setup.py Makefile $(NATIVE)
	@if ! command -v g++ >/dev/null && ! command -v c++ >/dev/null; then \
		echo "note: no C++ compiler found: going on with slower torch code (on Debian: apt-get install g++ python3-dev)"; fi
	@$(BIN)/python -c '$(REQUIREMENTS)' $(EXTRAS) > $(VENV)/requirements.txt
	@# The kernels are compiled while packages are fetched and unpacked.
	$(BIN)/python -m pip install --quiet --no-deps -e . & kernels=$$!; \
	$(BIN)/python -m pip install --quiet 'torch==$(TORCH)' && \
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt && wait $$kernels || { kill $$kernels; exit 1; }
	@rm -f $(VENV)/triton
	@if [ -n "$(WITHOUT_TRITON)" ]; then echo "note: WITHOUT_TRITON is set: tests of the server are skipped"; \
	elif $(BIN)/python -m pip install --quiet --no-deps '$(TRITON)'; then echo 1 > $(VENV)/triton; \
	elif [ "$$(uname -sm)" != "Linux x86_64" ]; then echo "note: no $(TRITON) for $$(uname -sm): tests of the server are skipped"; \
	else echo "error: $(TRITON) was not installed; say WITHOUT_TRITON=1 to go on without tests of the server" >&2; exit 1; fi
	@command -v nginx >/dev/null || { mkdir -p $(VENV)/nginx && cd $(VENV)/nginx && \
		{ apt-get download nginx && dpkg -x nginx_*.deb . && usr/sbin/nginx -v; } >/dev/null 2>&1; } || \
		echo "note: no nginx found or fetched: the test of HTTPS through a proxy is skipped"
	@$(BIN)/python -c 'from atomsieve.native import kernels; print("compiled kernels:", "yes" if kernels() else "no, slower torch code is used")'
	@touch $@

venv: $(STAMP)  ## make .venv and install everything into it

lint: $(STAMP)  ## ruff (rules and format), import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)  ## mypy
	$(BIN)/mypy

unit: $(STAMP)  ## quick tests, in this process
	$(PYTEST) -m 'not mpi and not e2e and not nightly'

mpi: $(STAMP)  ## tests that start mpirun
	$(PYTEST) -m mpi

e2e: $(STAMP)  ## whole-program runs
	$(PYTEST) -m e2e

suite: $(STAMP)  ## every test but the long ones
	$(PYTEST) $(SHARED) -m 'not nightly' --durations=25

test: lint  ## every check but the long ones
	@$(MAKE) --no-print-directory -j2 types suite

nightly: lint types  ## every check, with coverage
	$(PYTEST) $(SHARED) --cov --cov-report=term:skip-covered --durations=50

demo: $(STAMP)  ## labels, training, screening and a ranked list under demo/
	$(BIN)/atomsieve demo --out demo

bench: $(STAMP)  ## the real sources, measured against baselines (long)
	$(BIN)/python benchmarks/real_data.py

clean:  ## remove everything that was built here
	rm -rf $(VENV) build demo runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage *.egg-info
	find atomsieve -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
