# Two commands: `make demo` and `make test`. Both build .venv from requirements.lock when it is missing.
SHELL := /bin/sh
OUT ?= runs/demo
BIN := .venv/bin
# CPU builds of PyTorch spin up one thread a core in every process; tests start many processes.
TEST_ENV := PYTHONHASHSEED=0

.PHONY: help setup demo test lint unit system bench lock clean

help:
	@sed -n 's/^## //p' Makefile

## setup            build .venv from requirements.lock
setup: .venv/.ready
.venv/.ready: requirements.lock requirements-data.txt pyproject.toml setup.sh
	@sh setup.sh

## demo             the whole system on real video; VIDEOS=folder takes yours, OUT=folder is where it goes
demo: .venv/.ready
	@$(BIN)/videoar demo --out "$(OUT)" $(if $(VIDEOS),--videos "$(VIDEOS)")

## test             lint, types, unit tests and system tests
test: .venv/.ready lint
	$(TEST_ENV) $(BIN)/python -m pytest

## lint             ruff and mypy
lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## unit             tests that start no cluster
unit: .venv/.ready
	$(TEST_ENV) $(BIN)/python -m pytest -m "not system"

## system           tests over several processes: Ray, ray job submit, the deepspeed launcher
system: .venv/.ready
	$(TEST_ENV) $(BIN)/python -m pytest -m system

## bench            the figures of benchmarks/, each against its physical limit and the plain alternative
bench: .venv/.ready
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

## lock             resolve requirements.in anew into requirements.lock
lock:
	@rm -rf .lock-venv && python3.11 -m venv .lock-venv && .lock-venv/bin/pip install -q -r requirements.in
	@{ echo "# Made by make lock from requirements.in; the +cpu mark is dropped so that any build of the version serves."; \
	   .lock-venv/bin/pip freeze | sed 's/+cpu$$//'; } > requirements.lock
	@rm -rf .lock-venv

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
