# make demo      a search on made-up data, from raw files to the report
# make test      ruff, mypy and the tests, without the long ones
# make test-all  the same with the kill, fault, multi-node and replay matrices
# make bench     what docs/speed.md shows
# make setup     builds .venv, as the others do where it is missing; make setup PYTHON3=python3.12 names a Python
# make clean     removes all that make made; runs stay

PYTHON3 ?= python3 python3.13 python3.12 python3.11
PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check --prefer-binary --constraint constraints.txt
INSTALLED := .venv/installed
TORCH := $(shell grep '^torch==' constraints.txt)
WAY_OUT = install Python 3.11 or newer, then run: make setup PYTHON3=/path/to/python3

# Threads that spin while they wait starve the other workers of a machine.
export OMP_WAIT_POLICY := PASSIVE
export OMP_NUM_THREADS := 1
# The system clears every page that it gives out again, so freed tensors are kept.
export MALLOC_MMAP_THRESHOLD_ := 1073741824
export MALLOC_TRIM_THRESHOLD_ := 8589934592
export MALLOC_TOP_PAD_ := 268435456

.PHONY: setup demo bench lint test test-all clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@if ! $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then \
	  for python in $(PYTHON3); do \
	    $$python -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && found=$$python && break; \
	  done; \
	  if [ -z "$$found" ]; then echo "setup: none of '$(PYTHON3)' is Python 3.11 or newer; $(WAY_OUT)" >&2; exit 1; fi; \
	  echo "setup: .venv with $$($$found --version)"; \
	  $$found -m venv --clear .venv || exit 1; \
	fi
	@echo "setup: $(TORCH), the largest package: minutes on a slow line"
	@$(PIP) $(TORCH)
	@echo "setup: all other packages, at the versions of constraints.txt"
	@$(PIP) --editable '.[dev,kubeflow,export,mlflow]'
	@touch $@
	@echo "setup: done"

demo: setup
	$(PYTHON) -m pipelines autotower --config demo.yaml

bench: setup
	$(PYTHON) -m benchmarks.speed $(ARGS)

lint: setup
	$(PYTHON) -m ruff check
	$(PYTHON) -m mypy

test: lint
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

test-all: lint
	$(PYTHON) -m pytest

clean:
	rm -rf .venv .venv-swift build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
