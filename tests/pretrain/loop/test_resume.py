"""The type of a resumed run is the recorded one. All else of a resume is tested in tests/system/test_training.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.config import load
from cluster.config.precision import DtypeError, Hardware
from cluster.runtime.process_group import Ranks
from pretrain.engine.config import TrainConfig
from pretrain.loop import resume
from pretrain.loop.resume import settle_dtype

ALONE = Ranks(0, 1, torch.device("cpu"), ("here",))


def settle(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str, bfloat16: bool, recorded: str = "") -> tuple[str, str]:
    """Return the type of a configuration, and the line that says why, on a CPU with or without bfloat16."""
    monkeypatch.setattr(resume, "hardware", lambda device: Hardware("a CPU", "cpu", bfloat16, "some feature"))
    file = folder / "job.yaml"
    file.write_text(f"run: {{dir: {folder / 'run'}}}\n")
    checkpoint = None
    if recorded:
        checkpoint = folder / "step"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "config.yaml").write_text(load(file, [f"train.dtype={recorded}"]).yaml())
    config, made = settle_dtype(load(file, words), ALONE, checkpoint)
    assert f"dtype: {made.dtype}" in config.yaml(), "what is written into checkpoints is the settled type"
    return config.get(TrainConfig).dtype, made.line


def test_a_new_run_follows_the_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(monkeypatch, tmp_path, bfloat16=True)[0] == "bfloat16"
    assert settle(monkeypatch, tmp_path, bfloat16=False)[0] == "float32"
    zero = "deepspeed.zero_optimization={stage: 0}"
    assert settle(monkeypatch, tmp_path, zero, bfloat16=True) == (
        "float32",
        "train.dtype: float32 (auto: ZeRO stage 0 trains in nothing else)",
    )


def test_a_resumed_run_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(monkeypatch, tmp_path, bfloat16=True, recorded="float32")[0] == "float32"
    with pytest.raises(DtypeError, match=r"train\.dtype: bfloat16 is recorded, .*cluster\.accept_slow_dtype=true"):
        settle(monkeypatch, tmp_path, bfloat16=False, recorded="bfloat16")
    told = settle(monkeypatch, tmp_path, "cluster.accept_slow_dtype=true", bfloat16=False, recorded="bfloat16")
    assert told[0] == "bfloat16" and "90 times slower" in told[1]
