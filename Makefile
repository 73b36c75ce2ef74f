# Two commands on a machine with Python 3.11+, make and git: `make demo` and `make test`. Both set up .venv first.

PYTHON ?= python3
BIN := .venv/bin
MAEP := $(BIN)/maep
PYTEST := $(BIN)/python -m pytest
JOBS ?= 2
PARALLEL = -n $(JOBS) --dist loadfile
QUICK := not slow and not stack and not gpu and not browser
SMOKE := tests/test_config.py tests/test_artifact.py tests/test_house.py tests/data/test_lists.py tests/models/test_mae.py \
	tests/attacks/test_gradient.py tests/evaluate/test_measure.py tests/train/loop/test_step.py tests/tune/search \
	tests/serve/test_api.py tests/jobs/test_arguments.py

export PYTHON
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup room demo smoke test test-random test-slow test-stack bench lint format types lock wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## makes .venv from requirements.lock (once; immediate afterwards)
	@.ci/setup

demo: setup ## sets up, then trains, evaluates, promotes and serves a small purifier: about 4 minutes
	@echo "demo: the whole pipeline on scikit-learn's digits, about 4 minutes on 2 cores; a second run reuses finished stages"
	@$(MAEP) demo

test: setup room ## sets up, then runs the tests: under 8 minutes on 2 cores; ROOM=evaluate runs one room, JOBS=1 one process
	@echo "test: all tests that need no GPU, service or browser"
	@$(PYTEST) $(PARALLEL) -m "$(QUICK)" $(if $(ROOM),tests/$(ROOM),tests)

room:
	@[ -z "$(ROOM)" ] || [ -e "tests/$(ROOM)" ] || { \
		echo "ROOM=$(ROOM): choose one of $(notdir $(patsubst %/,%,$(wildcard tests/*/)))" >&2; exit 2; }

smoke: setup ## a selection from every room: under 2 minutes on 2 cores
	@$(PYTEST) $(PARALLEL) -m "$(QUICK)" $(SMOKE)

test-random: setup room ## the same tests in random order
	@$(PYTEST) $(PARALLEL) -p randomly -m "$(QUICK)" $(if $(ROOM),tests/$(ROOM),tests)

test-slow: setup ## the long tests, the browser's and the GPU's (each skips, with its reason, where it cannot run)
	@$(PYTEST) -m "(slow or gpu or browser) and not stack"

test-stack: setup ## the tests that start services (MLflow server, S3, several Ray nodes)
	@$(PYTEST) -m "stack"

bench: setup ## benchmarks: ratios against a baseline run in the same process tree
	@$(PYTEST) -s -o python_files='bench_*.py' tests/benchmarks

lint: setup ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup ## formats the code and applies the safe fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup ## mypy, strict
	@$(BIN)/mypy -p maep -p maep_serve -p maep_jobs

lock: setup ## resolves pyproject.toml into requirements.lock, with hashes (needs uv)
	@PATH="$$PATH:$(CURDIR)/.uv/bin" uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
		--no-header --all-extras pyproject.toml -o requirements.lock

wheel: setup ## builds dist/maep-*.whl
	@$(BIN)/python -m hatchling build -t wheel -d dist

clean: ## removes caches and built files; results in outputs/ and the environment in .venv stay
	@rm -rf dist build .mypy_cache .pytest_cache .ruff_cache
	@find platform serve jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
