"""Requests to stop, each with its reason."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cluster.runtime.job_protocol import SIGNALS, StopRequest, ranks_here


def test_stop_requests(tmp_path: Path) -> None:
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        stop = StopRequest(tmp_path, stop_after=5)
        assert not stop.asked(4)
        assert stop.asked(5) and stop.reason == "train.stop_after=5"
        stop = StopRequest(tmp_path, stop_after=0)
        assert not stop.asked(10**6)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked(1) and stop.reason == "SIGTERM"
        stop = StopRequest(tmp_path, stop_after=0)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.asked(1) and stop.reason == "SIGUSR1"
        stop = StopRequest(tmp_path, stop_after=0)
        (tmp_path / "stop").touch()
        assert stop.asked(1) and stop.reason.endswith("stop")
        failed: list[OSError] = []
        stop.clear(failed.append)
        assert not failed and not (tmp_path / "stop").exists()
        (tmp_path / "stop").mkdir()
        stop.clear(failed.append)
        assert len(failed) == 1, "what cannot be removed ends no job"
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_the_ranks_of_a_host_are_what_either_launcher_says() -> None:
    assert [ranks_here(said) for said in ({}, {"LOCAL_SIZE": "2"}, {"LOCAL_WORLD_SIZE": "8", "LOCAL_SIZE": "2"})] == [0, 2, 8]
