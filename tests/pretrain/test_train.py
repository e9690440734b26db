"""How one rank of training ends: exit codes, one line for our errors, a traceback for all others, status.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.config import Config, ConfigError
from cluster.metrics import MetricsPortError
from pretrain import train
from pretrain.checkpoint.deepspeed_io import CheckpointError
from pretrain.checkpoint.train_state import ResumeError
from pretrain.data.curriculum import CurriculumError
from pretrain.engine.deepspeed_config import EngineError
from pretrain.runs.run_logger import write_status


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANK", "3")
    (tmp_path / "config.yaml").write_text(f"run: {{dir: {tmp_path / 'run'}}}\n")
    return tmp_path / "config.yaml"


def end_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(config: Config) -> int:
        write_status(config.sections["run"].dir, "running", 7, 20)
        raise error

    monkeypatch.setattr(train, "run", run)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, 2),
        (EngineError, 2),
        (CurriculumError, 2),
        (ResumeError, 2),
        (MetricsPortError, 2),
        (CheckpointError, 1),
    ],
)
def test_our_errors_are_one_line_with_the_rank(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception], code: int
) -> None:
    end_with(monkeypatch, kind("`x` is wrong; mend it"))
    assert train.main(["-c", str(config)]) == code
    assert capsys.readouterr().err == "error: rank 3: `x` is wrong; mend it\n"
    assert (config.parent / "run" / "log" / "rank-3.log").read_text() == "error: rank 3: `x` is wrong; mend it\n"
    status = json.loads((config.parent / "run" / "status.json").read_text())
    assert (status["state"], status["step"], status["line"]) == ("failed", 7, "`x` is wrong; mend it")


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("bad shape"), KeyError("loss")])
def test_every_other_error_keeps_its_traceback_in_both_places(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    end_with(monkeypatch, error)
    assert train.main(["-c", str(config)]) == 1
    for text in (capsys.readouterr().err, (config.parent / "run" / "log" / "rank-3.log").read_text()):
        assert text.startswith("Traceback (most recent call last):") and "raise error" in text
        assert text.endswith(f"\nerror: rank 3: {type(error).__name__}: {error}\n")
    status = json.loads((config.parent / "run" / "status.json").read_text())
    assert (status["state"], status["line"]) == ("failed", f"{type(error).__name__}: {error}")


def test_a_configuration_that_cannot_be_read_leaves_no_run_folder(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert train.main(["-c", str(config), "train.clip=none"]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not (config.parent / "run").exists()
