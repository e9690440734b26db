"""A rank that is stopped (swapped out, a host that hangs) is found by its own heartbeat, written down, and the job goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cluster.metrics import heartbeat
from tests.helpers import training

pytestmark = pytest.mark.system
STEPS = 24


def served(run: Path) -> dict[str, float]:
    """The heartbeats of the ranks, as Prometheus sees them."""
    with urllib.request.urlopen(f"http://{(run / 'metrics-address').read_text().strip()}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found = re.findall(r'^videoar_train_heartbeat_timestamp_seconds\{rank="(\d+)"\} (\S+)$', text, re.MULTILINE)
    return {rank: float(time) for rank, time in found}


def test_a_stopped_rank_is_found_written_down_and_the_job_goes_on(tmp_path: Path) -> None:
    config, run = training.prepare(tmp_path), tmp_path / "run"
    command = [sys.executable, "-m", "cluster.cli.main", "launch", "-c", str(config), f"run.dir={run}"]
    keys = ["cluster.ranks_per_host=2", "cluster.heartbeat_seconds=15", f"curriculum.stages.0.steps={STEPS - 8}"]
    with subprocess.Popen(
        [*command, *keys], env=training.environment(), cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as job:
        training.until(job, f"step 6/{STEPS}")
        stopped = heartbeat.read(run)[1]
        os.kill(stopped.pid, signal.SIGSTOP)
        said = training.until(job, "writing down the stacks of all ranks")
        beats = served(run)
        rest, _ = job.communicate(timeout=training.PATIENCE)
    said += rest
    assert job.returncode == 0, said
    assert re.search(r"no heartbeat of rank 1 \(\S+, step \d+, \S+\) for \d+ s, while others beat", said), said
    assert "restart 1 of 3 from the newest checkpoint" in said and "continuing after step" in said
    assert beats["0"] > beats["1"] + 5, "its own heartbeat stands still alone"
    own, foreign = (heartbeat.stacks_of(run, rank).read_text() for rank in range(2))
    assert "Thread" in own and "pretrain/train.py" in own
    assert "rank 1, silent; read by py-spy" in foreign and "pretrain/train.py" in foreign, foreign
    steps = [line["step"] for line in training.metrics(run)]
    assert steps == list(range(1, STEPS + 1)), "no step is missing and none stands twice"
