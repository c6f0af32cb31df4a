# Two commands for a newcomer: `make demo` and `make test`. Both build .venv when it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TESTED := $(VENV)/.tested
DEMO   ?= demo

.PHONY: help demo test test-slow test-slurm test-gpu lint format docs bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# torch first and by exact version: a machine with a CPU build at hand then takes that one
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	@# bytecode of what is imported alone, made once, also where Python is told to write none: then every start would
	@# compile it anew; the thousands of other files need none
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[parquet]"
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "from pkgutil import walk_packages as w; import chemscale; [__import__(m.name) for m in w(chemscale.__path__, 'chemscale.') if m.name != 'chemscale.__main__']"
	@touch $(STAMP)

$(TESTED): $(STAMP)
	@# tools of development, and schemas of Kubernetes, 290 MB: nothing a user needs
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,s3,hpc,spectra,parquet,deploy]"
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m compileall -q -j 0 $(VENV)/lib chemscale >/dev/null || true # of all: tests start many processes
	@touch $(TESTED)

demo: $(STAMP) ## simulate a survey, fit, evaluate, show the report (two to three minutes on 2 cores)
	$(BIN)/chemscale demo --out $(DEMO)

test: $(TESTED) ## the default test suite, the examples of public names among it (tests/docs/test_doctests.py)
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not slurm and not browser"

test-slurm: $(TESTED) ## on a Slurm node of their own (root; skips, with the reason, without)
	$(BIN)/python -m pytest -m "slurm and not slow" tests/deploy

test-gpu: $(TESTED) ## on a machine with a CUDA device and the extra `gpu`
	$(BIN)/python -m pytest -m gpu tests

test-slow: $(TESTED) ## the marked tests as well (skips what the machine lacks)
	$(BIN)/python -m pytest -n 2

lint: $(TESTED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TESTED) ## mend formatting and imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## build the documentation site, warnings are errors
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

bench: $(STAMP) ## the quick benchmarks
	$(BIN)/chemscale bench scaling --tiny --out benchmarks/results

clean: ## remove the environment and build products
	rm -rf $(VENV) build dist site *.egg-info
