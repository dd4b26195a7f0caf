# make demo        one endpoint over a simulated fleet, left running at http://127.0.0.1:8080
# make demo ARGS=--once   the same, prints the answers and stops
# make test        all tests that this machine can run
# make check       ruff, mypy --strict, import rules
# make bench BENCH=router|gateway|agent   measures, side by side with the peers

PYTHON ?= python3
OLDEST ?= python3.10
NEWEST ?= python3.13
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
BENCH ?=
TESTS ?= tests

.PHONY: demo test check bench setup setup-dev test-oldest test-newest clean
.DEFAULT_GOAL := demo

demo: setup
	@$(BIN)/shoal up $(ARGS)

test: setup-dev
	@$(BIN)/pytest -q -n 2 --dist loadgroup $(TESTS)

# Agent and shared run on Python 3.10 too: JetPack 6 has nothing newer.
test-oldest:
	@test -x .venv-oldest/bin/python || $(OLDEST) -m venv .venv-oldest
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,tflite]' \
	  hypothesis onnx pytest pytest-asyncio pytest-timeout
	@.venv-oldest/bin/pytest -q -p no:cacheprovider tests/unit/shoal_agent tests/unit/shoal_shared

# The control plane runs on 3.11, as the demo does, and on the newest.
test-newest:
	@test -x .venv-newest/bin/python || $(NEWEST) -m venv .venv-newest
	@.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@.venv-newest/bin/pytest -q -n 2 -p no:cacheprovider tests/unit

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup-dev
	@$(BIN)/python tests/benchmarks/run.py $(BENCH)

setup: $(VENV)/.setup
setup-dev: $(VENV)/.setup-dev

$(VENV)/.setup: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Shoal's control plane needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1): name a newer one, as in 'make $(MAKECMDGOALS) PYTHON=python3.12'" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install its venv package, on Debian and Ubuntu 'sudo apt install python3-venv'" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Shoal into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@$(BIN)/python -m shoal_simulators.demo.models
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	@echo "Installing what the tests need ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest build dist
