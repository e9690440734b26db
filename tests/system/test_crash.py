"""An error that is not ours, on one rank of two: its traceback is on the console and in RUN/log of that rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import training

pytestmark = pytest.mark.system
LAST = "error: rank 1: RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"


def test_a_wrong_shape_on_rank_1_leaves_its_traceback(tmp_path: Path) -> None:
    config, run = training.prepare(tmp_path), tmp_path / "run"
    process = training.start(config, 2, run, module="tests.helpers.crash_worker", first_arguments=["1"])
    output, _ = process.communicate(timeout=training.PATIENCE)
    assert process.returncode not in (0, 2, 75), output
    log = (run / "log" / "rank-1.log").read_text()
    for text in (output, log):
        assert "Traceback (most recent call last):" in text and LAST in text
        assert "in wrong_forward" in text and 'pretrain/train.py", line' in text, "from the loop down to the wrong line"
    assert "step 1/" not in output
    # Rank 0 had begun the run: it says that it failed, unless the launcher ended it before it could.
    assert json.loads((run / "status.json").read_text())["state"] in ("failed", "running")
