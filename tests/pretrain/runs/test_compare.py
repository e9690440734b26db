"""Two runs compared in one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.runs.compare import CompareError, compare, main


def run(folder: Path, losses: list[float], *, clip: float = 1.0, ids: str = "a", code: str = "1") -> Path:
    folder.mkdir()
    lines: list[dict[str, Any]] = [{"step": i, "loss": loss, "sample_ids": [ids]} for i, loss in enumerate(losses, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(f"train: {{clip: {clip}}}\nrun: {{seed: 1}}\n")
    (folder / "run.json").write_text(json.dumps({"starts": [{"code_digest": "0"}, {"code_digest": code}]}))
    return folder


def test_equal_runs_are_equal_over_the_steps_that_both_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run(tmp_path / "a", [0.7, 0.6, 0.5]), run(tmp_path / "b", [0.7, 0.6])
    assert main([str(first), str(second)]) == 0
    said = capsys.readouterr().out
    assert "settings are equal" in said and "2 steps in both; samples are the same" in said
    assert "losses are equal to the last digit" in said


def test_what_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path / "a", [0.7, 0.6, 0.5])
    second = run(tmp_path / "b", [0.7, 0.6 * (1 + 2e-6), 0.5], clip=2.0, code="2", ids="b")
    found = compare(first, second)
    assert found.settings == ("train.clip: 1.0 -> 2.0",) and found.origin == ('code_digest: "1" -> "2"',)
    assert (found.steps, found.first_difference, found.first_other_samples) == (3, 2, 1) and not found.equal
    assert found.largest == pytest.approx(2e-6, rel=1e-3)
    assert main([str(first), str(second)]) == 1
    assert "losses differ from step 2 on, by 2.00e-06 at most" in capsys.readouterr().out


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CompareError, match="no run here"):
        compare(tmp_path, tmp_path)
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err


def test_a_damaged_record_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run(tmp_path / "a", [0.7]), run(tmp_path / "b", [0.7])
    (second / "run.json").write_text('{"starts": [')
    assert main([str(first), str(second)]) == 2
    said = capsys.readouterr().err
    assert "run.json: not valid JSON" in said and "Traceback" not in said
