from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from cluster.monitor import history as module
from cluster.monitor.history import BLOCK, History


def line(step: int, **more: object) -> str:
    plain = {"step": step, "stage_name": "short", "bucket": "f009x64x64", "loss": 1.0 / step, "tokens": 100, "skipped": ""}
    return json.dumps({**plain, "scale_loss": {"1x1": 0.5}, "seconds": {"total": 0.5}, "sample_ids": ["a"], **more}) + "\n"


def append(path: Path, lines: Iterable[str]) -> None:
    with path.open("a") as file:
        file.writelines(lines)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_only_what_is_new_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(path, [line(step) for step in range(1, 100)])
    history = History(path)
    assert history.refresh() and history.rows == 99
    taken: list[bytes] = []
    take = History._take
    monkeypatch.setattr(History, "_take", lambda self, text: (taken.append(text), take(self, text)))
    append(path, [line(100)])
    assert history.refresh() and history.rows == 100
    assert b"".join(taken).decode() == line(100)
    assert history.column("loss")[-1] == 0.01
    assert history.column("scale_loss/1x1").tolist() == [0.5] * 100
    assert history.column("tokens_per_second")[0] == 200.0
    assert "sample_ids" not in history.names()


def test_a_line_that_is_being_written_waits(path: Path) -> None:
    text = line(2)
    append(path, [line(1), text[:20]])
    history = History(path)
    assert history.refresh() and history.rows == 1 and history.complete == 1.0 and not history.damaged
    append(path, [text[20:]])
    assert history.refresh() and history.rows == 2


def test_damaged_lines_are_counted_and_left_out(path: Path) -> None:
    append(path, [line(1), "{broken\n", "[1]\n", '{"loss": 1}\n', "\0\0\n", line(2, loss=None), line(3, extra={"new": 7})])
    history = History(path)
    history.refresh()
    assert history.rows == 3 and history.damaged == 4
    assert math.isnan(history.column("loss")[1])
    assert history.column("extra/new")[2] == 7.0 and math.isnan(history.column("extra/new")[0])
    append(path, [line(4)])
    history.refresh()
    assert history.column("step").tolist() == [1, 2, 3, 4]


def test_a_column_that_comes_later_is_empty_before(path: Path) -> None:
    append(path, [line(1)])
    history = History(path)
    history.refresh()
    append(path, [line(2, scale_loss={"1x1": 0.4, "2x2": 0.3})])
    history.refresh()
    assert np.isnan(history.column("scale_loss/2x2")[0]) and history.column("scale_loss/2x2")[1] == 0.3


def test_a_resume_that_cuts_the_file_back_is_followed(path: Path) -> None:
    append(path, [line(step) for step in range(1, 201)])
    history = History(path)
    history.refresh()
    before = history.column("loss")
    history.blocks("loss")
    path.write_text("".join(line(step) for step in range(1, 151)))
    append(path, [line(step, loss=-1.0, more=1) for step in range(151, 231)])  # longer than before
    history.refresh()
    assert history.column("step").tolist() == list(range(1, 231))
    assert (history.column("loss")[:150] > 0).all() and (history.column("loss")[150:] == -1).all()
    assert before[199] == 1 / 200, "a view that is in use does not change"
    assert history.blocks("loss")[0].tolist() == [
        history.column("loss")[at * BLOCK : (at + 1) * BLOCK].min() for at in range(3)
    ]
    path.write_text(line(1))
    history.refresh()
    assert history.rows == 1
    path.unlink()
    history.refresh()
    assert history.rows == 0


def test_the_same_with_and_without_the_fast_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(path, [line(step, bucket=("a", "b")[step % 2], mfu=None if step < 5 else 0.5) for step in range(1, 50)])
    fast = History(path)
    fast.refresh()
    monkeypatch.setattr(module, "_parsed_at_once", lambda text, lines: None)
    slow = History(path)
    slow.refresh()
    assert set(slow.names()) == set(fast.names())
    for name in fast.names():
        np.testing.assert_array_equal(fast.column(name), slow.column(name), err_msg=name)
    assert np.isfinite(fast.column("loss_by/short · a")).sum() == 24
    assert np.isfinite(fast.column("loss_by/short · b")).sum() == 25


def test_reading_stops_when_its_time_is_over_and_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1000)
    append(path, [line(step) for step in range(1, 101)])
    history = History(path)
    assert not history.refresh(0.0)
    assert 0 < history.complete < 1 and 0 < history.rows < 100
    while not history.refresh(0.0):
        pass
    assert history.rows == 100 and history.complete == 1.0


def test_a_line_longer_than_a_chunk_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 50)
    append(path, [line(1), line(2)])
    history = History(path)
    assert history.refresh() and history.rows == 2 and not history.damaged
