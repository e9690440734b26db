"""Starts training jobs for the system tests: a small configuration on shards of random bits, and the launcher."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster.runtime.job_protocol import LAUNCH
from cluster.runtime.ports import free_port
from tests.helpers import made_shards

ROOT = Path(__file__).resolve().parents[2]

BUCKETS = {"f009x32x32": 22, "f005x64x64": 9}
CONFIG = """
run: {dir: DIR/run, seed: 3}
model: {layers: 2, width: 64, heads: 2, text_length: 32}
curriculum:
  shards: [DIR/shards]
  stages:
    - name: low
      steps: 12
      mix: [{bucket: f009x32x32, batch: 5, weight: 2}, {bucket: f009x32x32, frames: 1, batch: 4}]
    - {name: high, steps: 8, mix: [{bucket: f005x64x64, batch: 3}], learning_rate: 0.002, window: 1, frame_mask: 0.1}
train: {learning_rate: 0.003, warmup: 3, dtype: float32, micro_batch: 2, checkpoint_every: 4, ema: 0.9, threads: 1}
deepspeed: {zero_optimization: {stage: 3}}
metrics: {port: 0}
"""
STEPS = 20
PATIENCE = 600
"""Seconds after which a job is taken to hang: a crowded machine turns ten seconds into two minutes."""


def prepare(folder: Path) -> Path:
    """Write shards and configuration; returns the configuration's path."""
    made_shards.make(folder / "shards", BUCKETS)
    path = folder / "config.yaml"
    path.write_text(CONFIG.replace("DIR", str(folder)))
    return path


def environment() -> dict[str, str]:
    return {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}


def launcher(ranks: int, module: str) -> list[str]:
    """The deepspeed launcher's command for a Python module."""
    command = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", os.devnull, "--num_gpus", str(ranks)]
    return [*command, "--master_port", str(free_port()), "--no_local_rank", "--module", module]


def start(
    config: Path, ranks: int, run: Path, *overrides: str, module: str = "pretrain.train", first_arguments: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start a job under the launcher; its output is one pipe."""
    command = [*launcher(ranks, module), *first_arguments, "-c", str(config), f"run.dir={run}", *overrides]
    return subprocess.Popen(
        command, env=environment(), cwd=config.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def train(config: Path, ranks: int, run: Path, *overrides: str, code: int = 0) -> str:
    """Run a job to its end, check the exit code, return its output."""
    process = start(config, ranks, run, *overrides)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, f"exit code {process.returncode}, {code} expected:\n{output}"
    return output


def several(config: Path, ranks: int, runs: dict[str, list[str]], *, code: int = 0) -> None:
    """Run several jobs, one after the other, in one set of rank processes: run folder -> overrides."""
    command = [
        *launcher(ranks, "tests.helpers.several_worker"),
        str(config),
        str(code),
        json.dumps({str(config.parent / name): given for name, given in runs.items()}),
    ]
    done = subprocess.run(
        command, env=environment(), cwd=config.parent, text=True, capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def until(process: subprocess.Popen[str], words: str) -> str:
    """Read a job's output until a line holds `words`."""
    seen = ""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"`{words}` was never printed:\n{seen}")


def rank_process(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of one rank below a launcher."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank) and "pretrain.train" in child.cmdline():
            return child
    raise AssertionError(f"rank {rank} is not running")


@contextlib.contextmanager
def standing(run: Path, rank: int = 0) -> Iterator[None]:
    """Stop a rank of the run while this is open, so that its few steps last until something else has happened; on any host of this machine."""
    token = json.loads((run / "launch.json").read_text())["launch"]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            env = process.environ()
            if env.get(LAUNCH) == token and env.get("RANK") == str(rank) and "pretrain.train" in process.cmdline():
                process.suspend()
                break
    else:
        raise AssertionError(f"rank {rank} of {run} is not running")
    try:
        yield
    finally:
        process.resume()


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def compare(first: Path, second: Path, *, exact_to: int = STEPS, relative: float = 1e-5) -> None:
    """Check that two runs trained on the same samples with the same losses, bit by bit up to step `exact_to`."""
    one, two = metrics(first), metrics(second)
    assert [line["step"] for line in two] == list(range(1, len(one) + 1))
    for a, b in zip(one, two, strict=True):
        step = a["step"]
        assert a["sample_ids"] == b["sample_ids"], f"step {step}: other samples"
        assert a["tokens"] == b["tokens"] and a["stage"] == b["stage"] and a["learning_rate"] == b["learning_rate"]
        for name in ("loss", "grad_norm"):
            if step <= exact_to:
                assert a[name] == b[name], f"step {step}: {name} {a[name]!r} and {b[name]!r}"
            else:
                assert abs(a[name] - b[name]) <= relative * abs(a[name]), f"step {step}: {name} {a[name]!r} and {b[name]!r}"
