import pytest

from cluster.runtime import progress
from cluster.runtime.progress import ProgressBar


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("encode", 10, every=5.0) as bar:
        for _ in range(8):
            clock.now += 2.0
            bar.update(note="shard 1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "encode: 3/10 (30 %), 6 s, 14 s left, shard 1"
    assert lines[1] == "encode: 6/10 (60 %), 12 s, 8 s left, shard 1"
    assert lines[2] == "encode: 8/10 (80 %), 16 s, 4 s left, shard 1"
    assert len(lines) == 3


def test_resumed_work_counts_from_where_it_was(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("encode", 100, done=90, every=1.0) as bar:
        clock.now += 5.0
        bar.update(5)
    assert capsys.readouterr().out.splitlines()[0] == "encode: 95/100 (95 %), 5 s, 5 s left"


def test_work_of_unknown_length_has_no_share(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("list", 0, every=5.0) as bar:
        clock.now += 6.0
        bar.update(2000, note="names")
    assert capsys.readouterr().out.splitlines()[0] == "list: 2000, 6 s, names"


def test_other_ranks_print_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("train", 2, enabled=False, every=0.0) as bar:
        clock.now += 9.0
        bar.update(2)
    assert capsys.readouterr().out == ""


def test_nothing_done_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("train", 0):
        pass
    assert capsys.readouterr().out == ""
