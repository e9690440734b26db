import json
import threading
from pathlib import Path

import pytest

from cluster.metrics import Heartbeat, heartbeat
from cluster.runtime import checkpoint_folders
from cluster.runtime.file_lock import hold_run
from cluster.runtime.job_protocol import LAUNCH
from cluster.supervise import run_state
from cluster.supervise.run_state import newest_step, orphan, take_over, why_unfinished, write_owner


def checkpoint(run: Path, step: int) -> Path:
    partial = checkpoint_folders.partial_of(run / "checkpoints", step)
    partial.mkdir(parents=True)
    (partial / "state.json").write_text("{}")
    checkpoint_folders.publish(partial, checkpoint_folders.folder_of(run / "checkpoints", step))
    return checkpoint_folders.folder_of(run / "checkpoints", step)


def test_a_run_is_finished_with_the_checkpoint_of_its_last_step(tmp_path: Path) -> None:
    assert "no complete checkpoint of step 7 (newest: none)" in why_unfinished(tmp_path, 7, 0)
    checkpoint(tmp_path, 3)
    last = checkpoint(tmp_path, 7)
    (last / "state.json").write_text("")
    checkpoint_folders.set_aside(checkpoint(tmp_path, 9), tmp_path)
    assert "(newest: 3)" in why_unfinished(tmp_path, 7, 0), "a cut file, and a checkpoint set aside, are no checkpoints"
    assert why_unfinished(tmp_path, 7, 3) == "", "train.stop_after ends it earlier"
    assert "has no status.json with the number of steps" in why_unfinished(tmp_path, None, 0)
    (tmp_path / "status.json").write_text('{"state": "running", "step": 3, "steps": 3}')
    assert why_unfinished(tmp_path, None, 0) == ""
    (last / "state.json").write_text("{}")
    assert why_unfinished(tmp_path, 7, 0) == ""


def test_an_orphan_is_the_running_job_of_a_launch_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert orphan(tmp_path) == "" and newest_step(tmp_path / "checkpoints") == 0
    checkpoint(tmp_path, 3)
    assert newest_step(tmp_path / "checkpoints") == 3
    write_owner(tmp_path, "feed")
    for token in ("feed", ""):
        monkeypatch.setenv(LAUNCH, token)
        with Heartbeat(tmp_path, 0, every=3600):
            while not heartbeat.read(tmp_path):
                threading.Event().wait(0.01)
        assert heartbeat.read(tmp_path)[0].launch == token
        assert orphan(tmp_path) == "", "nobody holds the run"
        with hold_run(tmp_path):
            assert orphan(tmp_path) == token, "a job that was started by hand is no launch's"
            write_owner(tmp_path, "beef")
            assert orphan(tmp_path) == "", "started by another launch"
            (tmp_path / run_state.OWNER).write_text(json.dumps([]))
            assert orphan(tmp_path) == ""
        write_owner(tmp_path, "feed")
        heartbeat.clear(tmp_path)


@pytest.mark.parametrize("obeys", [True, False])
def test_an_orphan_is_asked_first_and_then_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obeys: bool) -> None:
    said: list[str] = []
    held = ["process 7"]

    def holder(folder: Path) -> str:
        if obeys and (folder / "stop").exists():
            held.clear()
        return held[0] if held else ""

    monkeypatch.setattr(run_state, "run_holder", holder)
    take_over(tmp_path, 0.3, held.clear, said.append)
    assert not (tmp_path / "stop").exists() and said[0].startswith("taking over a job whose launch is gone (process 7)")
    assert len(said) == (1 if obeys else 2)
