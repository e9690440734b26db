from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from pipeline import video
from pipeline.config import CutConfig, DecodeLimits
from pipeline.decoding.process import LIMITED_FRAMES, DecoderDied, DecoderProcess
from pipeline.video import Request, VideoError
from tests.helpers.scans import only

TIMES = tuple(i / 8 for i in range(9))


def test_child_gives_what_reading_here_gives(clips: Path) -> None:
    path = clips / "bikes.mp4"
    requests = [Request(TIMES, 64, 64), Request(TIMES[:5], 32, 32), Request(tuple(4 + t for t in TIMES), 48, 80)]
    with DecoderProcess(DecodeLimits()) as child:
        here = [video.read_frames(path, r.times, r.height, r.width) for r in requests]
        for found, wanted in zip(child.read(path, requests), here, strict=True):
            assert np.array_equal(found, wanted)
        first = child.pid
        scan = only(child.scan(path, CutConfig()))
        assert (
            len(scan.times) == 250
            and scan.fingerprint.shape == (80, 64)
            and list(scan.times[scan.cut > 0]) == [1.2, 3.04, 5.48, 7.48, 9.68]
        )
        with pytest.raises(VideoError) as caught:
            child.scan(clips / "absent.mp4", CutConfig())
        assert caught.value.reason == "not_found"
        assert child.pid == first, "an answer, good or bad, leaves the child alive for the next video"


def test_an_answer_half_read_does_not_leak_into_the_next(clips: Path) -> None:
    with DecoderProcess(DecodeLimits()) as child:
        answers = child.read(clips / "bikes.mp4", [Request(TIMES, 64, 64)] * 5)
        next(answers)
        answers.close()
        (found,) = child.read(clips / "carphone_pristine.mp4", [Request(TIMES[:1], 16, 16)])
        assert found.shape == (1, 16, 16, 3)


def test_a_killed_child_is_reported_and_replaced(clips: Path) -> None:
    with DecoderProcess(DecodeLimits()) as child:
        answers = child.read(clips / "bikes.mp4", [Request(TIMES, 256, 256)] * 40)
        next(answers)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(DecoderDied) as caught:
            list(answers)
        assert caught.value.reason == "killed" and "bikes.mp4" in str(caught.value) and child.deaths == 1
        assert len(list(child.read(clips / "bikes.mp4", [Request(TIMES, 32, 32)]))) == 1


def test_a_crash_is_told_from_a_kill(clips: Path) -> None:
    with DecoderProcess(DecodeLimits()) as child:
        list(child.read(clips / "bikes.mp4", [Request(TIMES, 32, 32)]))
        answers = child.read(clips / "bikes.mp4", [Request(TIMES, 256, 256)] * 40)
        next(answers)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSEGV)
        with pytest.raises(DecoderDied, match="SIGSEGV") as caught:
            list(answers)
        assert caught.value.reason == "crash"


def test_time_limit(clips: Path) -> None:
    with DecoderProcess(DecodeLimits(seconds=0.01)) as child:
        with pytest.raises(DecoderDied, match=r"pipeline\.limits\.seconds = 0\.01") as caught:
            child.scan(clips / "bigbuckbunny.mp4", CutConfig())
        assert caught.value.reason == "time_out" and child.pid is None


def test_a_hung_child_is_ended(clips: Path) -> None:
    with DecoderProcess(DecodeLimits(stall_seconds=2)) as child:
        list(child.read(clips / "bikes.mp4", [Request(TIMES, 32, 32)]))
        answers = child.read(clips / "bikes.mp4", [Request(TIMES, 256, 256)] * 40)
        next(answers)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(DecoderDied, match="no frame decoded for") as caught:
            list(answers)
        assert caught.value.reason == "stalled"


def test_memory_limit(clips: Path) -> None:
    wanted = [Request(tuple(i / 25 for i in range(120)), 4096, 4096)]
    with DecoderProcess(DecodeLimits(memory_gb=3)) as child:
        with pytest.raises((VideoError, DecoderDied)) as caught:
            list(child.read(clips / "bigbuckbunny.mp4", wanted))
        assert caught.value.reason in ("memory", "crash")
        assert len(list(child.read(clips / "bigbuckbunny.mp4", [Request(TIMES, 32, 32)]))) == 1


def test_the_time_limit_is_for_a_number_of_frames_so_that_long_films_are_not_refused(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that says after each answer how far it is; only time since the last whole number of such parts counts."""
    counted: list[float] = []

    class Watched(DecoderProcess):
        def _fill(self, path: str, waited: float) -> float:
            counted.append(waited)
            return super()._fill(path, waited) + 1.0

    lines = [json.dumps({"kind": "beat", "size": 0, "frames": n}) for n in (100, LIMITED_FRAMES, LIMITED_FRAMES + 7)]
    lines.append(json.dumps({"kind": "end", "size": 0, "software": {}}))
    script = "import sys; sys.stdin.readline()\n" + "".join(
        f"sys.stdout.write({line!r} + chr(10)); sys.stdout.flush(); sys.stdin.readline()\n" for line in lines
    )
    with Watched(DecodeLimits(seconds=100)) as decoder:
        child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        decoder._child, decoder._log = child, tempfile.TemporaryFile()  # noqa: SIM115
        monkeypatch.setattr(decoder, "beat", lambda: (child.stdin.write(b"\n"), child.stdin.flush()))  # type: ignore[union-attr]
        assert list(decoder._ask({"path": "a"})) == []
    assert [waited > 0 for waited in counted] == [False, True, False, True]
