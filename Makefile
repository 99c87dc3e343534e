# `make demo` and `make test` set everything up by themselves; VENV=DIR uses an environment that exists.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.mrrcnn$(subst /,-,$(CURDIR))
SOURCES := setup.py pyproject.toml constraints.txt $(shell find ops/csrc -type f)

.PHONY: demo test faults abi lint format clean

demo: $(STAMP)
	$(BIN)/python -m jobs.cli demo $(ARGS)

# Two files beside each other, a thread each: most tests wait for processes, or compute on one core.
test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(ARGS)

# Kills, torn files, full disks, dead servers: an hour or two on two cores; ARGS="elastic disk" a part.
faults: $(STAMP)
	$(BIN)/python -m tests.faults $(ARGS)

# The operator's tests under another torch, with the libraries that lie in ops/: make abi TORCH=2.11.0
ABI_VENV ?= .venv-torch-$(TORCH)
abi:
	$(if $(TORCH),,$(error name a version: make abi TORCH=2.11.0))
	test -x $(ABI_VENV)/bin/python || $(PYTHON) -m venv $(ABI_VENV)
	$(ABI_VENV)/bin/pip install --quiet torch==$(TORCH) torchvision numpy setuptools pytest hypothesis
	$(ABI_VENV)/bin/python -c "from ops import backend_info as b; print(b()); assert b()['library']"
	$(ABI_VENV)/bin/python -m pytest -q tests/ops $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The operator is built against the installed torch, hence no build isolation and torch first.
# The stamp lies in the environment and names the checkout, so that several checkouts can share one.
$(STAMP): $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools wheel ninja packaging torch torchvision
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build *.egg-info ops/*.so .pytest_cache .ruff_cache .hypothesis
