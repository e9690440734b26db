import errno
import json
import math
import os
from pathlib import Path

import pytest

from cluster.metrics import JsonLines
from tests.helpers.step_report import REPORT


def test_lines_are_plain_json_that_can_be_read_while_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with JsonLines(path) as lines:
        lines.write(REPORT)
        first = json.loads(path.read_text())
        lines.write({"event": "checkpoint", "values": [1.0, math.inf], "pair": (math.nan, 2)})
    assert first["loss"] == 0.5 and first["mfu"] is None and first["scale_loss"] == {"1x1": 0.7, "2x2": 0.6}
    with JsonLines(path) as lines:
        lines.write({"event": "resumed"})
    _, second, third = path.read_text().splitlines()
    assert json.loads(second) == {"event": "checkpoint", "values": [1.0, None], "pair": [None, 2]}
    assert json.loads(third) == {"event": "resumed"}


def test_a_line_is_written_whole_or_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes half a line and then is full: no half line stays, the time of the file says that the job lives."""
    path, write = tmp_path / "metrics.jsonl", os.write

    def half(handle: int, data: bytes) -> int:
        if len(data) > 10:
            return write(handle, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with JsonLines(path) as lines:
        assert lines.write({"step": 1}) == ""
        os.utime(path, (0, 0))
        with monkeypatch.context() as disk:
            disk.setattr(os, "write", half)
            for step in (2, 3):
                assert lines.write({"step": step}) == f"{path}: No space left on device"
        assert path.read_text() == '{"step": 1}\n' and path.stat().st_mtime > 0
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3], "closing tries once more"
    with JsonLines(tmp_path / "none" / "x.jsonl"):
        pass
    assert not (tmp_path / "none").exists(), "no file without a line"
