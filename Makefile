# Two commands: `make demo` and `make test`. Both build .venv from requirements.lock when it is missing.
SHELL := /bin/sh
OUT ?= runs/demo
BIN := .venv/bin
# CPU builds of PyTorch spin up one thread a core in every process; tests start many processes, so each has one thread.
TEST_ENV := PYTHONHASHSEED=0 OMP_NUM_THREADS=1
# Unit tests run on all cores, one file of tests on one worker; system tests start clusters and run one after the other.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
UNIT = $(TEST_ENV) $(BIN)/python -m pytest -m "not system" -n $(JOBS) --maxprocesses 8 --dist loadfile
SYSTEM = $(TEST_ENV) $(BIN)/python -m pytest -m "system and not proof"

.PHONY: help setup demo test lint unit system bench lock clean proof-tokenizer proof-fvd proof-overfit proof-pipeline proof-odd proof-s3 proof-resume proof-hosts proof-pythons proof-kernels proof-seek proof-failing proof-learning proof-ablation results
.NOTPARALLEL:

help:
	@sed -n 's/^## //p' Makefile

## setup            build .venv from requirements.lock; TORCH=system keeps the torch that is installed, PYTHON=path chooses the Python
setup: .venv/.ready
.venv/.ready: requirements.lock requirements-data.txt pyproject.toml setup.sh
	@TORCH="$(TORCH)" PYTHON="$(PYTHON)" sh setup.sh

## demo             the whole system on real video; VIDEOS=folder takes yours, OUT=folder is where it goes, MINUTES=8 its time
demo: .venv/.ready
	@$(BIN)/videoar demo --out "$(OUT)" $(if $(VIDEOS),--videos "$(VIDEOS)") $(if $(MINUTES),--minutes "$(MINUTES)")

## test             lint, types, unit tests on all cores (JOBS=N), then system tests; the second part runs even if the first fails
test: .venv/.ready lint
	@failed=0; \
	echo '$(UNIT)'; $(UNIT) || failed=1; \
	echo '$(SYSTEM)'; $(SYSTEM) || failed=1; \
	exit $$failed

## lint             ruff and mypy
lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## unit             tests that start no cluster
unit: .venv/.ready
	$(UNIT)

## system           tests over several processes: Ray, ray job submit, the deepspeed launcher
system: .venv/.ready
	$(SYSTEM)

## bench            the figures of benchmarks/, each against its physical limit and the plain alternative
BENCHMARKS := bench_codec bench_tokenize bench_corpus bench_scale shard_size load train_model sample_model memory_model zero_memory padding monitor
bench: .venv/.ready
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

## proof-NAME       slow proofs: proof-tokenizer proof-fvd proof-overfit proof-pipeline proof-odd proof-s3 proof-resume proof-hosts proof-pythons proof-kernels proof-seek proof-failing proof-learning proof-ablation (ON="python3.12 python3.13" for proof-pythons)
proof-tokenizer: .venv/.ready
	$(BIN)/python benchmarks/proof_tokenizer.py --out runs/proof-tokenizer
proof-hosts: .venv/.ready
	VIDEOAR_NO_SKIP=1 $(BIN)/python -m pytest tests/cluster/hosts/test_launch_over_ssh.py tests/system/test_lost_host.py tests/system/test_lost_node.py
proof-kernels: .venv/.ready
	$(BIN)/pip install --quiet --no-deps --upgrade --target runs/proof-kernels triton
	PYTHONPATH=runs/proof-kernels $(BIN)/python benchmarks/proof_kernels.py
proof-pythons: .venv/.ready
	$(BIN)/python benchmarks/proof_pythons.py $(if $(ON),$(foreach each,$(ON),--python $(each)))
proof-fvd proof-overfit proof-pipeline proof-odd proof-s3 proof-resume proof-seek proof-failing proof-learning proof-ablation: .venv/.ready
	$(BIN)/python benchmarks/$(subst -,_,$@).py

## results          tables, curves, grids and videos of finished proofs (PROOFS="runs/proof-learning ..."), in runs/results
PROOFS ?= runs/proof-learning
results: .venv/.ready
	$(BIN)/python benchmarks/results.py $(PROOFS)

## lock             resolve requirements.in anew into requirements.lock, on PYTHONS="python3.11 python3.12 python3.13" (paths will do); KEEP=1 only adds
PYTHONS ?= python3.11 python3.12 python3.13
lock:
	@python3 .ci/lock.py $(if $(KEEP),--keep) $(PYTHONS)

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
