# Every target sets up what it needs first (scripts/setup.sh) and skips what is already there.
#   PYTHON=python3.12   the interpreter for .venv (default: the first of python3.11 .. 3.13)
#   VLLM='vllm==0.33.0' another vLLM than the default; VLLM=none leaves it alone
#   ARGS='...'          passed on: `make demo ARGS=--headless`, `make test ARGS='-k doctor'`
.DEFAULT_GOAL := help
.PHONY: help build demo test lint format docs wheel fuzz bench bench-gate gpu-check clean
export PYTHON VLLM
ARGS ?=

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## .venv, system packages and lmkv itself (editable); about 2 minutes the first time
	@scripts/setup.sh build

demo: ## real engines with and without lmkv, side by side on a page (set-up about 5 minutes once)
	@scripts/setup.sh demo
	@scripts/demo.sh $(ARGS)

test: ## all tests, C++ and Python, sanitizers and real engines included
	@scripts/setup.sh build engine browser fuzz
	@scripts/test.sh $(ARGS)

lint: ## formatters in check mode, linters, type checker
	@scripts/setup.sh tools
	@scripts/lint.sh $(ARGS)

format: ## let the formatters and fixers rewrite the tree
	@scripts/setup.sh tools
	@scripts/lint.sh --fix

docs: ## the site of docs/ into site/; a warning or a dead link fails
	@scripts/setup.sh tools
	@scripts/docs.sh $(ARGS)

wheel: ## a manylinux wheel with all it needs inside, into dist/; PYTHONS='python3.10 python3.12' for others
	@scripts/setup.sh build
	@scripts/wheel.sh $(ARGS)

fuzz: ## the fuzz targets (tests/fuzz) for five minutes, or ARGS=3600 seconds
	@scripts/setup.sh build fuzz
	@scripts/fuzz.sh $(or $(ARGS),300)

bench: ## every measurement, beside peers, and the page of it (about 25 minutes); ARGS=--full for more
	@scripts/setup.sh build engine
	@.venv/bin/python benchmarks/run.py $(ARGS); measured=$$?; \
	.venv/bin/python benchmarks/report.py && exit $$measured

bench-gate: ## what matters most, three times, against benchmarks/gate.json (about 6 minutes)
	@scripts/setup.sh build engine
	@.venv/bin/python benchmarks/gate.py $(ARGS)

gpu-check: ## the tests that need a CUDA device
	@scripts/gpu-check.sh $(ARGS)

clean: ## builds and caches; leaves .venv (remove it by hand for a fresh start)
	@scripts/clean.sh
