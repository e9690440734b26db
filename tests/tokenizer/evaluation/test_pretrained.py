"""The cache of public weights: checked at every use."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tokenizer.evaluation.pretrained import WeightsError, available, load


def test_the_cache_checks_what_it_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOAR_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"missing; fetch them with `python -m tokenizer\.evaluation\.fetch`"):
        load("i3d")
    path = tmp_path / "i3d.safetensors"
    safetensors.torch.save_file({"x": torch.ones(3)}, path)
    (tmp_path / "weights.json").write_text(json.dumps({"i3d": hashlib.sha256(path.read_bytes()).hexdigest()}))
    assert available("i3d")
    assert load("i3d")["x"].tolist() == [1, 1, 1]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="damaged"):
        load("i3d")
    with pytest.raises(WeightsError, match="known: lpips-alex, lpips-vgg, i3d"):
        load("inception")
