"""The benchmark of checkpoints on a CPU: it writes what was there at the save, and leaves nothing behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import checkpoint
from pretrain.checkpoint.writer import Checkpoints
from tests.helpers.side_stream import DelayedStream


def test_figures_and_bar(tmp_path: Path) -> None:
    bar, figures = checkpoint.gpu_checkpoint(torch.device("cpu"), 0.02, tmp_path)
    assert (
        bar["value"] == figures["stall_s"] >= 0 and bar["wanted"] == 0.5 and bar["name"] == "checkpoint of 0.0 GB alone: stall"
    )
    assert figures["gb"] == pytest.approx(0.02, rel=0.01) and figures["rounds"] == 2
    rates = [figures[name] for name in figures if name.endswith("gb_per_s")]
    assert len(rates) == 5 and all(rate > 0 for rate in rates)
    assert list(tmp_path.iterdir()) == []


def test_the_last_line_is_one_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["checkpoint", "--gigabytes", "0.01", "--folder", str(tmp_path)])
    checkpoint.main()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"name", "unit", "ours", "plain", "ratio", "limit", "limit_share"} <= set(line) and line["name"] == "checkpoint"


@pytest.mark.parametrize("waits", [True, False])
def test_a_copy_that_comes_too_late_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    """With copies that are made as late as may be: right if the change waits for them, an error if it does not."""

    class Late(Checkpoints):
        def __init__(self, *given: object) -> None:
            super().__init__(*given, side=DelayedStream())  # type: ignore[arg-type]

        def before_update(self) -> None:
            if waits:
                super().before_update()

    def finish(saver: Checkpoints) -> None:
        Checkpoints.before_update(saver)
        original(saver)

    original = Checkpoints.finish
    monkeypatch.setattr(checkpoint, "Checkpoints", Late)
    monkeypatch.setattr(Late, "finish", finish)
    if waits:
        assert checkpoint.gpu_checkpoint(torch.device("cpu"), 0.01, tmp_path)[1]["rounds"] == 2
    else:
        with pytest.raises(AssertionError, match="not the state at the save"):
            checkpoint.gpu_checkpoint(torch.device("cpu"), 0.01, tmp_path)
