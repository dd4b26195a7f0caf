# make demo        one endpoint over a simulated fleet, left running at http://127.0.0.1:8080
# make demo ARGS=--once   the same, prints the answers and stops
# make test        all tests that this machine can run
# make check       ruff, mypy --strict, import rules
# make test-hardware   the runtimes of the boards, each in an environment of its own
# make test-arm64      what a board installs resolves for arm64, and the agent runs there (emulated)
# make test-clouds     the kinds of targets, each in an environment of its own
# make bench BENCH=router|gateway|agent|runtimes|split|plan|pipeline|batch|failover|overload|offload|slow
#                  measures, side by side with the peers

PYTHON ?= python3
# Qualcomm's and Ascend's wheels are for 3.11 and 3.12, tflite-runtime's for 3.11.
HARDWARE ?= python3.11
OLDEST ?= python3.10
NEWEST ?= python3.13
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
BENCH ?=
TESTS ?= tests --ignore tests/hardware --ignore tests/arm64 --ignore tests/clouds

.PHONY: demo test check bench setup setup-dev setup-hardware test-hardware setup-clouds test-clouds \
  test-arm64 test-oldest test-newest clean
.DEFAULT_GOAL := demo

# An overload spills to KServe's server, which has an environment of its own.
demo: setup $(if $(findstring --overload,$(ARGS)),.venv-kserve/.setup)
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

# ONNX Runtime's distributions overwrite one another, so each has an environment of its own.
HARDWARE_ENVS := qnn cann gpu tflite
PACKAGES_qnn := -e .[qualcomm] onnx
PACKAGES_cann := -e .[ascend]
PACKAGES_gpu := -e .[jetson]
PACKAGES_tflite := -e . tflite-runtime numpy<2

# SDKs of clouds are large, and what runs there conflicts with one another.
CLOUD_ENVS := kserve azureml tpu ray
EVERY_CLOUD := $(addprefix tests/clouds/,test_conformance.py test_managed.py test_command_line.py)
PACKAGES_kserve := -e .[controlplane,kserve,kserve-server]
PACKAGES_azureml := -e .[controlplane,azureml,kserve-server]
PACKAGES_tpu := -e .[controlplane,tpu] onnxruntime
PACKAGES_ray := -e .[controlplane,ray-server]

.venv-%/.setup: pyproject.toml
	@test -x .venv-$*/bin/python || $(HARDWARE) -m venv .venv-$*
	@echo "Installing what $* needs into .venv-$* ..."
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
	  $(foreach p,$(PACKAGES_$*),'$(p)') hypothesis pytest pytest-asyncio pytest-timeout
	@touch $@

setup-hardware: $(foreach e,$(HARDWARE_ENVS),.venv-$(e)/.setup)

# First each runtime by itself, then agents that have them on a real control plane.
test-hardware: setup-dev setup-hardware
	@for env in $(HARDWARE_ENVS); do \
	  echo "runtimes of $$env:"; \
	  SHOAL_HARDWARE_ENV=$$env .venv-$$env/bin/pytest -q -p no:cacheprovider tests/hardware || exit 1; \
	done
	@echo "agents on a control plane:"
	@SHOAL_HARDWARE_ENV=fleet $(BIN)/pytest -q tests/hardware

setup-clouds: $(foreach e,$(CLOUD_ENVS),.venv-$(e)/.setup)

test-clouds: setup-clouds
	@for env in $(CLOUD_ENVS); do \
	  echo "targets of kind $$env:"; \
	  SHOAL_CLOUD=$$env .venv-$$env/bin/pytest -q -p no:cacheprovider -W ignore \
	    $(EVERY_CLOUD) tests/clouds/test_$${env}*.py || exit 1; \
	done

test-arm64: setup-dev
	@$(BIN)/pytest -q -n 2 tests/arm64
	@bash tests/arm64/emulated.sh $(BIN)/uv

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
	rm -rf $(VENV) .venv-* build dist
