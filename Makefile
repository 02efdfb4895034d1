# One verb per chore, the same for people and for CI. `make` alone lists them.
#
#   make demo                   train on three Meta-World tasks, evaluate, print the table
#   make demo ENGINE=local      the same in one process, without Ray
#   make demo CONSTRAINTS=      the same with the newest versions, torch with CUDA among them
#   make demo PIP_ARGS=...      more arguments for pip, for example the index of torch's CPU builds
#   make demo ARGS="seed=2"     the same with other settings

PYTHON ?= python3
ENGINE ?= rllib
CONSTRAINTS ?= constraints-cpu.txt
PIP_ARGS ?=
ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
FULL := $(VENV)/.installed-full
LEAN := $(VENV)/.installed-lean
WHAT_IS_INSTALLED := setup.cfg pyproject.toml $(CONSTRAINTS)
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) $(addprefix -c ,$(CONSTRAINTS)) -e

# the local engine needs neither Ray nor the tools of development; a full set-up serves it as well
ifeq ($(ENGINE)$(wildcard $(FULL)),local)
DEMO_SETUP := $(LEAN)
else
DEMO_SETUP := $(FULL)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check bench parity nightly format clean

help:
	@echo "make demo      train multi-head SAC with PCGrad on three Meta-World tasks and print the table (ENGINE=rllib|local)"
	@echo "make test      run the default test suite"
	@echo "make test-all  run all tests but the nightly ones: slow ones and those on Ray too"
	@echo "make check     formatting, lint, types, import arrows"
	@echo "make bench     time updates and environments beside what neither can do without"
	@echo "make parity    compare the compiled backend with metaworld's classes, all tasks (about 10 minutes)"
	@echo "make nightly   the same, goals of five seeds, runs and workers killed again and again (about half an hour)"
	@echo "make format    format the code and mend what lint can mend"
	@echo "make clean     remove caches and build leftovers; .venv and runs stay"
	@echo "Each first makes .venv and installs what it needs. GPU: add CONSTRAINTS= to the first call."

setup: $(FULL)

demo: $(DEMO_SETUP)
	$(BIN)/mtrl train configs/quickstart.yaml engine=$(ENGINE) $(ARGS)
	@run=$$(ls -td runs/quickstart-seed*/ | head -n 1) && run=$${run%/} \
		&& $(BIN)/mtrl report "$$run" --out "$$run/report" > /dev/null \
		&& echo "table:   $$run/report/table.md (and table.csv)" \
		&& echo "curves:  $$run/report/curves.png and tasks.png" \
		&& echo "more:    $(BIN)/tensorboard --logdir $$run/tensorboard"

test: $(FULL)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: $(FULL)
	$(BIN)/python -m pytest -m "not nightly" $(PYTEST_ARGS)

check: $(FULL)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/yamllint --strict configs docker

bench: $(FULL)
	$(BIN)/mtrl bench

nightly: $(FULL) parity
	$(BIN)/python -m pytest -m nightly $(PYTEST_ARGS)

parity: $(FULL)
	$(BIN)/python -W ignore -m envs.parity --out results/parity.md

format: $(FULL)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mtrl needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(FULL): $(WHAT_IS_INSTALLED) | $(BIN)/python
	$(PIP_INSTALL) ".[ray,dev]"
	@touch $@

$(LEAN): $(WHAT_IS_INSTALLED) | $(BIN)/python
	$(PIP_INSTALL) .
	@touch $@
