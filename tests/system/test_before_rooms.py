"""Files made before the packages got their rooms (by commit a5f761b) are read as before.

tests/data/before_rooms holds token shards, a run on them that was stopped after step 4 of 8 (one rank, ZeRO-3), and metrics.jsonl of
the same run undisturbed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import training

pytestmark = pytest.mark.system
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "before_rooms"
DIGEST = "9014f25956c390e2ddc55bf6e1219f6062263fea947927fa379700a61c692f96"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy that may be written to."""
    for name in ("run", "shards"):
        shutil.copytree(SAMPLE / name, tmp_path / name)
    shutil.copy(SAMPLE / "train.yaml", tmp_path)
    return tmp_path


def test_old_shards_are_sound_and_have_their_digest(old: Path) -> None:
    from pipeline.maintenance.verify import digest, verify

    report = verify(old / "shards")
    assert report.sound, report.problems
    assert digest(old / "shards") == DIGEST


def test_an_old_run_continues_with_the_losses_it_would_have_had(old: Path) -> None:
    command = [sys.executable, "-m", "pretrain.train", "-c", "train.yaml"]
    done = subprocess.run(
        command, cwd=old, env=training.environment(), capture_output=True, text=True, timeout=training.PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing after step 4 of 8" in done.stdout
    found = training.metrics(old / "run")
    wanted = [json.loads(line) for line in (SAMPLE / "straight-metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [line["step"] for line in wanted] == list(range(1, 9))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine["sample_ids"] == theirs["sample_ids"] and mine["learning_rate"] == theirs["learning_rate"]
        for name in ("loss", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), f"step {mine['step']}: {name}"


def test_an_old_checkpoint_is_exported(old: Path) -> None:
    from pretrain.checkpoint.export import describe, export, load_model

    export(old / "run", old / "average")
    export(old / "run", old / "plain", average=False)
    found = describe(old / "average")
    assert found.averaged and found.step == 4 and found.model.width == 16
    averaged, plain = load_model(old / "average").state_dict(), load_model(old / "plain").state_dict()
    assert sum(value.numel() for value in plain.values()) == 8824
    assert all(torch.isfinite(value).all() for value in averaged.values())
    assert not torch.equal(averaged["head.weight"], plain["head.weight"])
