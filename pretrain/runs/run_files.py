"""DOC from pretrain/checkpoint/train_state.py."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from cluster.runtime.atomic_files import write_text


def write_status(run: Path, state: str, step: int, steps: int, line: str = "") -> None:
    """Write RUN/status.json: `running`, `stopped`, `finished` or `failed`, for supervisors and monitors."""
    plain = {"state": state, "step": step, "steps": steps, "line": line, "host": socket.gethostname(), "pid": os.getpid()}
    write_text(run / "status.json", json.dumps(plain) + "\n")


def mark_failed(run: Path, line: str) -> None:
    """Turn `running` in RUN/status.json into `failed`, with the error's line."""
    path = run / "status.json"
    if path.is_file():
        plain = json.loads(path.read_text())
        if plain["state"] == "running" and plain["pid"] == os.getpid():
            write_status(run, "failed", plain["step"], plain["steps"], line)


def truncate_metrics(path: Path, step: int) -> int:
    """Cut metrics.jsonl after the line of `step` (a torn last line goes too). Returns how many bytes went.

    The file is cut in place: its writer may be open already, and readers keep following it.
    """
    if not path.is_file():
        return 0
    kept = 0
    with path.open("rb") as file:
        for text in file:
            try:
                if not text.endswith(b"\n") or json.loads(text)["step"] > step:
                    break
            except (json.JSONDecodeError, KeyError, TypeError):
                break
            kept += len(text)
    size = path.stat().st_size
    if kept < size:
        os.truncate(path, kept)
    return size - kept
