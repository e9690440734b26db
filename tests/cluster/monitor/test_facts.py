from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.monitor import facts
from cluster.monitor.history import History


def head(run: Path) -> tuple[dict[str, Any], list[str]]:
    problems: list[str] = []
    training, tokenizer = History(run / "metrics.jsonl"), History(run / "tokenizer-metrics.jsonl")
    training.refresh()
    tokenizer.refresh()
    return facts.headline(run, training, tokenizer, problems), problems


def status(run: Path, **more: object) -> None:
    plain = {"state": "running", "step": 2, "steps": 12, "line": "", "host": socket.gethostname(), "pid": os.getpid()}
    (run / "status.json").write_text(json.dumps({**plain, **more}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [{"step": step, "loss": 0.5, "tokens": 100, "seconds": {"total": 0.5}} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_running_job_and_its_time_left(run: Path) -> None:
    status(run)
    found, problems = head(run)
    assert not problems
    assert (found["state"], found["step"], found["steps"], found["loss"]) == ("running", 2, 12, 0.5)
    assert found["left_seconds"] == 5.0 and found["tokens_per_second"] == 200.0


def test_a_job_whose_process_is_gone_is_dead_and_one_that_writes_nothing_is_silent(run: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    status(run, pid=gone.pid)
    assert head(run)[0]["state"] == "dead"
    status(run, pid=gone.pid, host="elsewhere")
    assert head(run)[0]["state"] == "running", "another host's process cannot be looked at"
    then = time.time() - 2 * facts.SILENT
    for name in ("status.json", "metrics.jsonl"):
        os.utime(run / name, (then, then))
    assert head(run)[0]["state"] == "silent"


@pytest.mark.parametrize("text", ["{", "[]", "null", '"text"', "\0"])
def test_a_half_written_run_is_shown_with_what_is_wrong(run: Path, text: str) -> None:
    for name in ("status.json", "run.json", "samples/step-00000001/samples.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    (run / "samples/step-00000001/000.mp4").write_bytes(b"")
    (run / "config.yaml").write_text("a: [")
    (run / "checkpoints" / "step-00000002.partial").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001").mkdir()
    found, problems = head(run)
    shown = facts.overview(run, problems)
    assert facts.settings(run, problems) == {}
    assert found["step"] == 2
    assert shown["starts"] == [] and shown["samples"][0]["clips"][0]["text"] == "000"
    states = {row["step"]: row["state"] for row in shown["checkpoints"]}
    assert "missing" in states[1] and "being written" in states["step-00000002.partial"]
    assert any("config.yaml" in line for line in problems)
    assert all(str(run) in line for line in problems)
    json.dumps([found, shown], allow_nan=False)


def test_what_a_run_says(run: Path) -> None:
    (run / "run.json").write_text(json.dumps({"starts": [{"hosts": ["a", "b"], "resumed_from": 0}]}))
    (run / "log").mkdir()
    (run / "log" / "rank-0.log").write_text("x" * 100_000 + "\nthe end\n")
    folder = run / "samples" / "step-00000002"
    folder.mkdir(parents=True)
    (folder / "000.mp4").write_bytes(b"")
    (folder / "captions.json").write_text('{"captions": ["a rabbit"]}')
    problems: list[str] = []
    shown = facts.overview(run, problems)
    assert not problems
    assert [(row["rank"], row["host"]) for row in shown["ranks"]] == [(0, "a"), (1, "b")]
    (run / "heartbeats").mkdir()
    beat = {"rank": 1, "host": "c", "pid": 1, "time": time.time() - 60, "step": 3, "phase": "data"}
    (run / "heartbeats" / "rank-1").write_text(json.dumps(beat))
    row = facts.overview(run, problems)["ranks"][1]
    assert (row["host"], row["step"], row["phase"]) == ("c", 3, "data") and row["heartbeat age, s"] >= 60
    assert shown["samples"] == [
        {"title": "samples/step-00000002", "clips": [{"path": "samples/step-00000002/000.mp4", "text": "a rabbit"}]}
    ]
    assert [log["path"] for log in shown["logs"]] == ["log/rank-0.log"]
    assert facts.tail(run / "log" / "rank-0.log") == "the end\n"


def test_settings_that_differ() -> None:
    rows = facts.differing([{"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a": {"b": 1}}])
    assert rows == [{"key": "a.c", "values": ["2", "3", "null"]}]
