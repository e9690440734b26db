"""Bad steps are skipped by a rule that does not know when the host looks: runs stopped anywhere around them are the same run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import training
from tests.helpers.trouble_worker import TROUBLE

pytestmark = pytest.mark.system


def test_runs_stopped_around_bad_steps_are_exact(tmp_path: Path) -> None:
    config = training.prepare(tmp_path)
    common = ("train.spike_sigma=6", "train.checkpoint_every=50")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stops = (5, 6, 7, 8, 10, 11, 13, 14, 15)
    jobs = [
        [str(whole), *common],
        *([str(parts), *common, f"train.stop_after={step}"] for step in stops),
        [str(parts), *common],
    ]
    command = [sys.executable, "-m", "tests.helpers.trouble_worker", str(config), json.dumps(jobs)]
    done = subprocess.run(
        command,
        env=training.environment(),
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=training.PATIENCE,
        check=False,
    )
    assert done.returncode == 0 and f"codes {[0, *[75] * len(stops), 0]}" in done.stdout, done.stdout + done.stderr
    training.compare(whole, parts)
    for run in (whole, parts):
        lines = training.metrics(run)
        assert {line["step"]: line["skipped"] for line in lines if line["skipped"]} == TROUBLE
        assert all(line["grad_norm"] is None for line in lines if line["skipped"])
        assert [json.loads(line)["step"] for line in (run / "skipped.jsonl").read_text().splitlines()] == list(TROUBLE)
    state = [json.loads((run / "checkpoints" / "step-00000020" / "state.json").read_text()) for run in (whole, parts)]
    assert state[0] == state[1] and state[0]["guard"]["skipped"] == len(TROUBLE)
    # Every finite loss of the last stage counts, that of step 14, whose gradient was infinite, too.
    assert [step for step, _ in state[0]["guard"]["by_shape"]["f005x64x64"]] == list(range(13, 21))
