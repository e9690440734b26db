"""What a run reports: console, log, metrics.jsonl, status.json, the metrics endpoint."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import MetricsConfig
from cluster.metrics import MetricsPortError, StepReport
from cluster.runtime.atomic_files import DiskFull
from pretrain.runs import run_logger
from pretrain.runs.run_logger import LoggerError, RunLogger, mark_failed, truncate_metrics, write_status

REPORT = StepReport(
    step=3,
    stage=0,
    stage_name="low",
    bucket="f009x32x32",
    loss=0.5,
    scale_loss={"1x1": 0.4, "2x2": 0.6},
    bit_accuracy={"1x1": 0.7, "2x2": 0.6},
    grad_norm=math.nan,
    learning_rate=1e-3,
    tokens=1000,
    seconds={"total": 0.5, "data": 0.01},
    memory={"resident": 5},
    skipped="nonfinite_loss",
    sample_ids=["a", "b"],
    mfu=0.25,
)


def test_rank_0_writes_lines_and_serves_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLogger(tmp_path, 0, MetricsConfig(port=0), log_every=1, tensorboard=False) as logger:
        logger.step(REPORT, 10)
        address = (tmp_path / "metrics-address").read_text().strip()
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            served = answer.read().decode()
    said = capsys.readouterr().out
    assert "step 3/10 low f009x32x32 loss 0.50000" in said and "2,000 tok/s" in said and "SKIPPED (nonfinite_loss)" in said
    assert "videoar_train_step 3.0" in served and 'videoar_train_skipped_steps_total{reason="nonfinite_loss"} 1.0' in served
    assert "videoar_train_last_step_timestamp_seconds 1" in served
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["loss"] == 0.5 and line["grad_norm"] is None and line["sample_ids"] == ["a", "b"]
    assert "step 3/10" in (tmp_path / "log" / "rank-0.log").read_text()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MetricsPortError, match=f"metrics port 127.0.0.1:{port}: .*set metrics.port"):
            RunLogger(tmp_path, 0, MetricsConfig(port=port), log_every=1, tensorboard=False)


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLogger(tmp_path / "run", 1, MetricsConfig(port=0), log_every=1, tensorboard=True) as logger:
        logger.log("words")
        logger.step(REPORT, 10)
        logger.scalars(3, {"validation/x": 0.1})
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()


def test_metrics_are_cut_in_place_after_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert truncate_metrics(path, 3) == b""
    lines = [json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(1, 7)]
    path.write_text("".join(lines) + '{"step": 7, "lo')
    with path.open("a") as writer:
        assert truncate_metrics(path, 4) == ("".join(lines[4:]) + '{"step": 7, "lo').encode()
        writer.write('{"step": 5}\n')
    assert path.read_text() == "".join(lines[:4]) + '{"step": 5}\n'
    assert truncate_metrics(path, 5) == b""


def test_status_is_one_json_object(tmp_path: Path) -> None:
    write_status(tmp_path, "running", 1, 2)
    write_status(tmp_path, "stopped", 2, 2, "SIGTERM")
    assert json.loads((tmp_path / "status.json").read_text())["line"] == "SIGTERM"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    mark_failed(tmp_path, "too late: it has stopped")
    write_status(tmp_path, "running", 3, 4)
    mark_failed(tmp_path, "no disk")
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["state"], found["step"], found["line"]) == ("failed", 3, "no disk")


def test_a_damaged_status_does_not_hide_why_a_run_failed(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "runn')
    mark_failed(tmp_path, "the true reason")
    assert (tmp_path / "status.json").read_text() == '{"state": "runn'


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_no_training_and_loses_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLogger(tmp_path, 0, MetricsConfig(enabled=False), log_every=1, tensorboard=False) as logger:
        logger.step(REPORT, 10)
        with pytest.MonkeyPatch.context() as disk:
            disk.setattr("cluster.metrics.step_report._append", full)
            for step in range(4, 16):
                logger.step(replace(REPORT, step=step), 20)
        found = [line for line in capsys.readouterr().out.splitlines() if "training goes on" in line]
        line = f"metrics.jsonl: {tmp_path}/metrics.jsonl: No space left on device"
        assert found == [f"{line}; training goes on", f"{line} (10 times); training goes on"]
        assert logger.meter.registry.get_sample_value("videoar_train_aside_failures_total", {"what": "metrics.jsonl"}) == 12
        logger.step(replace(REPORT, step=16), 20)
        steps = [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(3, 17)), "lines that waited are written once there is room"


def test_status_is_written_over_the_old_one_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_status(tmp_path, "running", 1, 20)

    def no_room(path: Path, text: str) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr(run_logger, "write_text", no_room)
    (tmp_path / "metrics.jsonl").write_text('{"step": 11}\n{"step": 12}\n{"step": 1')
    mark_failed(tmp_path, "the true reason")
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["state"], found["step"], found["line"]) == ("failed", 12, "the true reason")


def test_reports_and_samples_of_steps_that_are_trained_again_are_set_aside(tmp_path: Path) -> None:
    for step in (4, 6):
        (tmp_path / "samples" / f"step-{step:08d}").mkdir(parents=True)
    for name in ("metrics", "validation", "skipped"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 4, 6)))
    with RunLogger(tmp_path, 0, MetricsConfig(enabled=False), log_every=1, tensorboard=False) as logger:
        logger.begin(4)
    for name in ("metrics", "validation", "skipped"):
        steps = [json.loads(text)["step"] for text in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert steps == [2, 4, 4], name
        assert (tmp_path / "aside" / f"{name}-after-step-4.jsonl").read_text() == '{"step": 6}\n', "and nothing is lost"
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-00000004"]
    assert [path.name for path in (tmp_path / "aside" / "samples").iterdir()] == ["step-00000006"]


def test_tensorboard_shows_a_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, end in ((0, 8), (4, 10)):
        with RunLogger(tmp_path, 0, MetricsConfig(enabled=False), log_every=1, tensorboard=True) as logger:
            logger.begin(begin)
            for step in range(begin + 1, end + 1):
                logger.scalars(step, {"loss": step / 10})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 11))


def test_tensorboard_that_is_not_installed_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoggerError, match=r"train\.tensorboard=true needs the package tensorboard"):
        RunLogger(tmp_path, 0, MetricsConfig(enabled=False), log_every=1, tensorboard=True)
