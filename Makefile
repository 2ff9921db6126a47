# Two commands do everything: `make demo` and `make test`. Each sets up what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PYTEST_WORKERS ?= 2

LINT := lint-python lint-imports lint-c lint-swift

.PHONY: help setup demo wheel test lint $(LINT) format types swift-test pytest coverage hooks \
	install mflux test-gpu test-faults reproduce rehearse clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Make the environment in .venv

$(STAMP): requirements/dev.in requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Building and testing need Python 3.11 or later (the wheel itself: 3.10); set PYTHON=/path/to/python3")'
	@echo "Setting up $(VENV) ..."
	@# New pins go into an environment that is there; another Python starts it anew.
	@[ "$$($(BIN)/python -VV 2>/dev/null)" = "$$($(PYTHON) -VV)" ] || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -r requirements/dev.in
	@touch $@

demo: setup ## Build the wheel, install it clean, run Qwen-Image attention through it
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build_tools demo

wheel: setup ## Build dist/*.whl
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build_tools wheel

install: wheel ## Install the wheel into .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl

test: lint types swift-test pytest ## Formatting, lint, types, swift test, all Python tests
	@echo "make test: all of it passed"

# What `make test` is at, so that a long run is not silent.
SAY = @printf '\n==> %s\n'

lint: $(LINT) ## Formatting and lint of every language, and the direction of imports

lint-python: setup
	$(SAY) "Python: formatting and lint"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

lint-imports: setup
	$(SAY) "Python: the direction of imports"
	PYTHONPATH=mfa_wheel:. $(BIN)/lint-imports --no-logo --cache-dir build/import-linter

SOURCES = $(shell find swift_pkg tests benchmarks \( -name .build -o -path tests/standins/upstream \) -prune -o \( $(1) \) -print | sort)
C_SOURCES = $(call SOURCES,-name '*.c' -o -name '*.h' -o -name '*.cpp')
# The text of PlainSimdgroupEvent.swift is Metal, compiled as it stands: its indentation counts.
SWIFT_SOURCES = $(filter-out %/PlainSimdgroupEvent.swift,$(call SOURCES,-name '*.swift'))

lint-c: setup
	$(SAY) "C: formatting"
	@$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)

# Swift's own formatter comes with the compiler; without one there is nothing to hold Swift to.
WITH_SWIFT = @if swift --version >/dev/null 2>&1; then $(1); \
	elif [ -n "$${QWEN_MFA_EXPECT_SWIFT:-}" ]; then echo "QWEN_MFA_EXPECT_SWIFT is set and there is no Swift"; exit 1; \
	else echo "skipped: no Swift toolchain on this machine"; fi

lint-swift:
	$(SAY) "Swift: formatting and lint"
	$(call WITH_SWIFT,swift format lint --strict --parallel $(SWIFT_SOURCES))

types: setup
	$(SAY) "Python: types"
	$(BIN)/mypy

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --exit-zero .
	$(BIN)/clang-format -i $(C_SOURCES)
	@if command -v swift >/dev/null; then swift format --in-place --parallel $(SWIFT_SOURCES); fi

hooks: setup ## Run the same checks before each commit of this clone
	$(BIN)/pre-commit install

swift-test:
	$(SAY) "swift test"
	$(call WITH_SWIFT,swift test --package-path swift_pkg --scratch-path build/swift-test)

# Real mflux, newest and oldest supported, in an environment of its own (Python 3.11 or later).
MFLUX := .venv-mflux
MFLUX_NEWEST := 0.24.0
MFLUX_OLDEST := 0.23.0

$(MFLUX)/.complete: requirements/mflux.in requirements/mflux-constraints.txt Makefile
	@echo "Setting up $(MFLUX) ..."
	@[ "$$($(MFLUX)/bin/python -VV 2>/dev/null)" = "$$($(PYTHON) -VV)" ] || $(PYTHON) -m venv --clear $(MFLUX)
	@$(MFLUX)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements/mflux-constraints.txt -r requirements/mflux.in
	@$(MFLUX)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-warn-conflicts mflux==$(MFLUX_NEWEST)
	@rm -rf $(MFLUX)/oldest
	@$(MFLUX)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(MFLUX)/oldest mflux==$(MFLUX_OLDEST) pillow==12.3.0
	@touch $@

# On macOS the tests are those of the portable engine, built here; the Metal library's is
# `qwen-mfa selftest --metal`.
SYSTEM ?= $(shell uname -s)
ifeq ($(SYSTEM),Darwin)
test pytest coverage: export QWEN_MFA_ENGINE := portable
endif

mflux: install $(MFLUX)/.complete ## Install the wheel and real mflux into .venv-mflux
	@$(MFLUX)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl

pytest: install mflux
	$(SAY) "Python tests, against the installed wheel"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n $(PYTEST_WORKERS)

test-gpu: install mflux ## Run the tests of the package on MLX's default device, a GPU
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --gpu -n $(PYTEST_WORKERS) tests/qwen_mfa

coverage: install mflux ## Run the Python tests and report what they reach (build/coverage/html)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --cov --cov-report=term --cov-report=html

test-faults: install ## Attack exit, forks, first use and caches, each many times (minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q -s tests/faults/attacks.py

reproduce: setup ## Build twice, with nothing in common but the sources, and compare the bytes
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build_tools reproduce

rehearse: install ## Rehearse a release against an index on loopback (long)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -v tests/build_tools/rehearsal/rehearse.py

clean: ## Remove everything that is built
	rm -rf $(VENV) $(MFLUX) build dist swift_pkg/.build .mypy_cache .ruff_cache .pytest_cache .hypothesis
