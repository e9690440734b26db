"""What a run folder says of its job, for whoever starts it: whether it is done, from where it continues, who runs it.

In:  RUN. Out: reasons and names; RUN/launch.json, which says which launch owns the job.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.metrics import heartbeat, last_step
from cluster.runtime import checkpoint_folders
from cluster.runtime.atomic_files import DiskFull, write_text
from cluster.runtime.file_lock import run_holder
from cluster.supervise.supervisor import describe

OWNER = "launch.json"
"""File of RUN with the token of the launch that last started the job."""


def why_unfinished(run_folder: Path, steps: int | None, stop_after: int) -> str:
    """Return why a pre-training run is not done, or an empty string when the checkpoint of its last step is complete.

    steps: steps of all stages; None for stages in tokens, whose steps the job itself computes and writes to RUN/status.json.
    stop_after: step at which the run is to stop early; 0 runs all steps.
    """
    if steps is None:
        try:
            steps = int(json.loads((run_folder / "status.json").read_text())["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"{run_folder} has no status.json with the number of steps"
    last = min(stop_after or steps, steps)
    folder = run_folder / "checkpoints"
    newest = newest_step(folder)
    return "" if newest >= last else f"{folder} has no complete checkpoint of step {last} (newest: {newest or 'none'})"


def newest_step(checkpoints: Path) -> int:
    """Return the step of the newest complete checkpoint in a folder of checkpoints, 0 without one; contents are not read."""
    for path in checkpoint_folders.listed(checkpoints):
        if not checkpoint_folders.damage(path, contents=False):
            return int(path.name.removeprefix("step-"))
    return 0


def newest_sound(checkpoints: Path) -> str:
    """Return the newest checkpoint that was read back now, byte for byte; an empty string if there is none."""
    for folder in checkpoint_folders.listed(checkpoints):
        if not checkpoint_folders.damage(folder, workers=2):
            return folder.name
    return ""


def mark_ended(folder: Path, code: int) -> None:
    """Change RUN/status.json from running to failed for a job whose rank 0 could not (it was killed)."""
    path = folder / "status.json"
    try:
        plain = json.loads(path.read_text())
        if plain["state"] == "running" and not run_holder(folder):
            step = max(int(plain["step"]), last_step(folder / "metrics.jsonl"))
            write_text(path, json.dumps({**plain, "state": "failed", "step": step, "line": describe(code)}) + "\n")
    except (OSError, ValueError, KeyError, TypeError, DiskFull):
        return  # the launch has said it already


def write_owner(run_folder: Path, launch: str) -> None:
    """Say which launch owns the job."""
    write_text(run_folder / OWNER, json.dumps({"launch": launch}) + "\n")


def orphan(run_folder: Path) -> str:
    """Return the token of the launch whose job is running though nobody supervises it; empty if there is none.

    Call it while holding RUN/launch.lock. A job that was started by hand belongs to no launch.
    """
    if not run_holder(run_folder):
        return ""
    try:
        owner: Mapping[str, Any] = json.loads((run_folder / OWNER).read_text())
        token = str(owner["launch"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    beats = heartbeat.read(run_folder)
    return token if beats and all(beat.launch == token for beat in beats.values()) else ""


def take_over(run_folder: Path, seconds: float, kill: Callable[[], None], log: Callable[[str], None]) -> None:
    """Let the job of a launch that is gone write a checkpoint and end, within `seconds`, else kill it; what is left of it is killed."""
    log(
        f"taking over a job whose launch is gone ({run_holder(run_folder)}): it writes a checkpoint and ends, then it is started again"
    )
    (run_folder / "stop").touch()
    end = time.monotonic() + seconds
    while run_holder(run_folder) and time.monotonic() < end:
        time.sleep(0.2)
    if run_holder(run_folder):
        log(f"it still runs after {seconds:g} s: killing it")
    kill()
    while run_holder(run_folder) and time.monotonic() < end + 30:
        time.sleep(0.2)
    (run_folder / "stop").unlink(missing_ok=True)
