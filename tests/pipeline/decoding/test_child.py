from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.analysis.scan import ScanOptions, scan
from pipeline.config import CutConfig, DecodeLimits
from pipeline.decoding.child import _Heartbeat
from pipeline.decoding.process import DecoderProcess
from pipeline.video import VideoError
from tests.helpers.scans import only


def test_a_heartbeat_for_each_frame_and_at_most_one_a_second_on_the_wire(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[int] = []
    only(scan(clips / "carphone_distorted.mp4", ScanOptions(), beat=lambda: beats.append(1)))
    assert len(beats) == 120
    clock = iter([0.0, 0.2, 0.9, 1.0, 1.5, 1.99, 2.0, 7.0])
    monkeypatch.setattr("pipeline.decoding.child.time.monotonic", lambda: next(clock))
    out = io.BytesIO()
    beat = _Heartbeat(out)
    for _ in range(7):
        beat()
    assert out.getvalue().count(b'"beat"') == 3


def test_frame_and_pixel_limits_hold_in_the_child(clips: Path) -> None:
    with DecoderProcess(DecodeLimits(max_frames=10)) as child, pytest.raises(VideoError) as caught:
        child.scan(clips / "bikes.mp4", CutConfig())
    assert caught.value.reason == "too_many_frames"
    with DecoderProcess(DecodeLimits(max_pixels=100)) as child, pytest.raises(VideoError) as caught:
        child.scan(clips / "bikes.mp4", CutConfig())
    assert caught.value.reason == "too_large"


def test_the_child_ends_with_its_parent(clips: Path) -> None:
    """The parent is killed with SIGKILL while the child decodes; the child must not live on."""
    code = (
        "import sys; from pipeline.decoding.process import *; from pipeline.config import *\n"
        "child = DecoderProcess(DecodeLimits()); answers = child.read(sys.argv[1], [Request((0.0,), 64, 64)] * 3)\n"
        "next(answers); print(child.pid, flush=True); sys.stdin.read()"
    )
    path = str(clips / "bikes.mp4")
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        child.wait(timeout=20)
