"""A launch is killed with SIGKILL and started again: it takes its job over, which goes on from a checkpoint of that moment."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.metrics import heartbeat
from tests.helpers import training

pytestmark = pytest.mark.system


def test_a_launch_that_was_killed_takes_its_job_over(tmp_path: Path) -> None:
    config, run = training.prepare(tmp_path), tmp_path / "run"
    words = [sys.executable, "-m", "cluster.cli.main", "launch", "-c", str(config), "train.stop_after=9"]
    words += ["train.checkpoint_every=1000"]
    with subprocess.Popen(
        words, env=training.environment(), cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as launch:
        training.until(launch, "step 2/20")
        rank = training.psutil.Process(heartbeat.read(run)[0].pid)
        rank.send_signal(signal.SIGSTOP)  # so that its few steps last until somebody takes it over
        launch.kill()
    with subprocess.Popen(
        words, env=training.environment(), cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as again:
        said = training.until(again, "taking over a job whose launch is gone (")
        rank.send_signal(signal.SIGCONT)
        rest, _ = again.communicate(timeout=training.PATIENCE)
    text = said + rest
    assert again.returncode == 75 and "continuing after step" in rest, text
    assert "[ERROR]" not in text
    assert [line["step"] for line in training.metrics(run)] == list(range(1, 10)), "each step once"
    starts = [line for line in (run / "log" / "rank-0.log").read_text().splitlines() if " rank 0 of 1 on " in line]
    assert len(starts) == 2
