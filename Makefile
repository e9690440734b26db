# Two commands: `make demo` and `make test`. Both build .venv from requirements.lock when it is missing.
SHELL := /bin/sh
OUT ?= runs/demo
BIN := .venv/bin
# CPU builds of PyTorch spin up one thread a core in every process; tests start many processes.
TEST_ENV := PYTHONHASHSEED=0

.PHONY: help setup demo test lint unit system bench lock clean proof-tokenizer proof-fvd proof-overfit proof-pipeline proof-odd proof-s3 proof-resume proof-hosts

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
BENCHMARKS := bench_codec bench_tokenize bench_scale shard_size load train_model sample_model memory_model zero_memory padding
bench: .venv/.ready
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

## proof-NAME       slow proofs: proof-tokenizer proof-fvd proof-overfit proof-pipeline proof-odd proof-s3 proof-resume proof-hosts
proof-tokenizer: .venv/.ready
	$(BIN)/python benchmarks/proof_tokenizer.py --out runs/proof-tokenizer
proof-hosts: .venv/.ready
	VIDEOAR_HOSTS=1 $(BIN)/python -m pytest -m hosts
proof-fvd proof-overfit proof-pipeline proof-odd proof-s3 proof-resume: .venv/.ready
	$(BIN)/python benchmarks/$(subst -,_,$@).py

## lock             resolve requirements.in anew into requirements.lock
lock:
	@rm -rf .lock-venv && python3.11 -m venv .lock-venv && .lock-venv/bin/pip install -q -r requirements.in
	@{ echo "# Made by make lock from requirements.in; the +cpu mark is dropped so that any build of the version serves."; \
	   .lock-venv/bin/pip freeze | sed 's/+cpu$$//'; } > requirements.lock
	@rm -rf .lock-venv

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
