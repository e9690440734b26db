"""A curriculum with compiled blocks: everything is compiled before a stage's first step, and that changes no step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import made_shards, training

pytestmark = pytest.mark.system
STAGES = """
  stages:
    - {name: images, steps: 3, mix: [{bucket: f009x32x32, frames: 1, batch: 4}]}
    - {name: packed, steps: 4, mix: [{bucket: f009x32x32, batch: 5, weight: 2}, {bucket: f009x32x32, frames: 1, batch: 3}]}
    - {name: hidden, steps: 4, mix: [{bucket: f005x64x64, batch: 3}], window: 1, frame_mask: 0.5, activation_checkpointing: full}
"""


def test_steps_of_three_stages_compile_nothing(tmp_path: Path) -> None:
    config = training.prepare(tmp_path)
    text = config.read_text()
    head, tail = text[: text.index("  stages:")], text[text.index("train: {") :]
    config.write_text(head + STAGES.lstrip("\n") + tail)
    made_shards.make(tmp_path / "held-out", training.BUCKETS, salt="held-out")
    common = (
        "train.pack_tokens=400", "train.pack_above=0", "train.validate_every=2", f"curriculum.validation=[{tmp_path / 'held-out'}]",
        "train.samples=1", "train.sample_every=3", "objective.condition_drop=0.3",
    )  # fmt: skip
    whole, parts, plain = tmp_path / "whole", tmp_path / "parts", tmp_path / "plain"
    jobs = [
        [str(whole), "model.compile=true", *common],
        [str(parts), "model.compile=true", *common, "train.stop_after=5"],
        [str(parts), "model.compile=true", *common],
        [str(plain), *common],
    ]
    command = [sys.executable, "-m", "tests.helpers.compile_worker", str(config), json.dumps(jobs)]
    done = subprocess.run(
        command,
        env=training.environment(),
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=training.PATIENCE,
        check=False,
    )
    assert done.returncode == 0 and "codes [0, 75, 0, 0]" in done.stdout, done.stdout + done.stderr
    said = (whole / "log" / "rank-0.log").read_text()
    assert [line.split(" stage ")[1].split(":")[0] for line in said.splitlines() if "warm after" in line] == [
        "images", "packed", "hidden",
    ]  # fmt: skip
    assert "compiled before_attention (" in said and "after_attention (" in said, "the first warm-up compiles"
    assert said.count("s, compiled nothing") == 2, "and the others find everything compiled"
    for run in (whole, parts, plain):
        lines = training.metrics(run)
        assert len(lines) == 11 and [line["compilations"] for line in lines] == [0] * 11, said
        assert all(0 <= line["padding"] < 0.5 for line in lines) and any(line["padding"] > 0 for line in lines)
    training.compare(whole, parts)
    # aot_eager is eager PyTorch in another order of operations.
    training.compare(plain, whole, exact_to=0, relative=1e-4)
