"""Stages of different shapes, packing, then sequence parallelism, in one run with kills between."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers import training
from tests.helpers.made_shards import make

pytestmark = pytest.mark.system
CONFIG = """
run: {dir: DIR/run, seed: 3}
model: {layers: 2, width: 64, heads: 4, text_length: 32}
curriculum:
  shards: [DIR/shards]
  stages:
    - name: low
      steps: 4
      activation_checkpointing: none
      mix: [{bucket: f009x32x32, batch: 6}, {bucket: f009x32x32, frames: 1, batch: 8}]
    - {name: high, steps: 4, mix: [{bucket: f005x64x64, batch: 3}], learning_rate: 0.002, window: 1, frame_mask: 0.1,
       flip_max: 0.1, flip_delta: 0.02, activation_checkpointing: selective}
    - {name: long, tokens: 4050, mix: [{bucket: f033x32x32, batch_tokens: 800}], window: 3, frame_mask: 0.1, sequence_parallel: 2}
train: {learning_rate: 0.003, warmup: 3, dtype: float32, micro_batch: 2, checkpoint_every: 2, ema: 0.9, threads: 1,
  pack_tokens: 400, activation_checkpointing: full}
deepspeed: {zero_optimization: {stage: 3}}
metrics: {port: 0}
"""
STEPS = 13


def test_three_stages_the_last_with_ulysses_with_kills_between(tmp_path: Path) -> None:
    make(tmp_path / "shards", {"f009x32x32": 22, "f005x64x64": 9, "f033x32x32": 5})
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("DIR", str(tmp_path)))
    undisturbed, disturbed, alone = tmp_path / "undisturbed", tmp_path / "disturbed", tmp_path / "alone"
    said = training.train(config, 2, undisturbed)
    assert "stage long: 5 steps" in said and "2 ranks share each sequence" in said
    # kill -9 of one rank in the second stage, then in the third.
    for step in (6, 11):
        process = training.start(config, 2, disturbed)
        training.until(process, f"step {step}/{STEPS}")
        training.rank_process(process, 1).send_signal(signal.SIGKILL)
        process.communicate(timeout=training.PATIENCE)
        assert process.returncode not in (0, 75)
    training.train(config, 2, disturbed)
    training.compare(undisturbed, disturbed, exact_to=STEPS)
    lines = training.metrics(undisturbed)
    assert [line["stage_name"] for line in lines] == ["low"] * 4 + ["high"] * 4 + ["long"] * 5
    # One rank has nobody to share with, and packs other rows: the same losses, samples and counts.
    assert "sequence_parallel 2 does not divide 1 ranks: using 1" in training.train(
        config, 1, alone, "train.activation_checkpointing=none", "train.pack_tokens=0"
    )
    training.compare(undisturbed, alone, exact_to=0)
