# Everything a newcomer and CI run. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_LINK_MODE := copy
export UV_COMPILE_BYTECODE := 1
# Hundreds of processes start in a run of the tests: none shall compile its source anew.
unexport PYTHONDONTWRITEBYTECODE
KERNELS := $(wildcard */src/*/*.pyx */src/*/*.pxd)

.PHONY: help system privileged sync format lint types test asan fuzz bench demo ci clean
.DEFAULT_GOAL := help

help: ## List what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

system: ## Install the system packages that are missing (needs root for that)
	@.ci/system

privileged:
	@.ci/privileges "make $(MAKECMDGOALS)"

sync: $(VENV)/.ready ## Make .venv with the three distributions and every tool

$(VENV)/.ready: pyproject.toml common/pyproject.toml worker/pyproject.toml merger/pyproject.toml $(KERNELS) | system
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ddump needs Python 3.11 or newer; say which: make PYTHON=python3.12")'
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	$(BIN)/uv sync --quiet --inexact --python $(BIN)/python
	@touch $@

format: sync ## Format the code
	$(BIN)/ruff check --fix-only . && $(BIN)/ruff format .

lint: sync ## Check style, spelling and who may import whom
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell && $(BIN)/lint-imports

types: sync ## Check types, and the kernels' stubs against the kernels
	$(BIN)/mypy && $(BIN)/python -m mypy.stubtest ddump_worker._pcap ddump_worker._ring ddump_merger._merge

# Those that capture want the host for themselves; the others share it. Where ARGS leave
# one of the two without a test, that is no failure (pytest's 5).
test: privileged sync ## Run the tests, on real traffic (needs root)
	$(BIN)/pytest -n auto --maxprocesses 4 -m "not live" $(ARGS) || test $$? = 5 -a -n "$(ARGS)"
	$(BIN)/pytest -m live $(ARGS) || test $$? = 5 -a -n "$(ARGS)"

asan: sync ## Run the tests of the kernels under AddressSanitizer
	tests/fuzz/asan.sh

fuzz: sync ## Feed the kernels hostile bytes for SECONDS under AddressSanitizer
	tests/fuzz/fuzz.sh $(or $(SECONDS),60)

bench: privileged sync ## Measure against tcpdump, mergecap, tcpslice and curl, side by side
	for bench in tests/benchmarks/bench_*.py; do $(BIN)/python $$bench || exit; done

demo: privileged sync ## Show the tool working: two workers, traffic, one merged capture
	@$(BIN)/python tests/system/demo.py

ci: lint types test ## What .ci/run runs

clean: ## Remove what was built
	rm -rf $(VENV) */build */src/*.egg-info */src/*/*.so */src/*/_pcap.c */src/*/_ring.c */src/*/_merge.c
