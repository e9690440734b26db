"""`videoar data` on what a machine without network can make, and one line for what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.cli.main import run
from pipeline.datasets import moving_mnist


def test_weizmann_is_made_and_says_how_to_use_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "strips" / "0").mkdir(parents=True)
    Image.fromarray(np.zeros((64, 640, 3), np.uint8)).save(tmp_path / "strips" / "0" / "8.jpg")
    out = tmp_path / "out"
    assert run(["data", "weizmann", str(out), "--from", str(tmp_path / "strips")]) == 0
    said = capsys.readouterr().out
    digest = json.loads((out / "dataset.json").read_text())["digest"]
    assert f"digest {digest}" in said and f"corpus.videos=[{out}/train]" in said
    assert (out / "train" / "0-8.mp4").exists()
    assert run(["data", "weizmann", str(tmp_path / "x"), "--from", str(tmp_path / "nothing")]) == 2
    assert "no strips ACTION/ID.jpg" in capsys.readouterr().err


def test_moving_mnist_of_digits_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = np.full((120, 28, 28), 255, np.uint8), np.repeat([3, 7], 60)
    monkeypatch.setattr(moving_mnist, "digits", lambda: few)
    assert run(["data", "moving-mnist", str(tmp_path / "m"), "--train", "2", "--test", "1"]) == 0
    assert sorted(path.name for path in (tmp_path / "m" / "train").iterdir()) == ["000000.mp4", "000001.mp4"]
    assert run(["data", "moving-mnist", str(tmp_path / "m"), "--train", "3", "--test", "1"]) == 2


def test_archives_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "data",
        "kinetics",
        str(tmp_path / "k"),
        "--archive",
        str(tmp_path / "part_0.tar.gz"),
        "--annotations",
        str(tmp_path / "a.csv"),
    ]
    assert run(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "a.csv" in err
