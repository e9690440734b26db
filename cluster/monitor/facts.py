"""What a run folder says besides its curves: state, starts, checkpoints, ranks, samples, logs.

In:  a run folder, perhaps half written, perhaps written to at this moment.
Out: plain values for JSON; a file that cannot be read is a line in `problems`, never an error.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from cluster.config.differences import changed_keys, flat
from cluster.metrics import heartbeat
from cluster.monitor.history import History
from cluster.runtime.atomic_files import DamagedFile, read_json
from cluster.runtime.checkpoint_folders import damage, listed
from cluster.runtime.errors import one_line

SILENT = 300.0
"""Seconds without a written line after which a running job is called silent."""
TAIL_BYTES = 64 << 10
"""Bytes of a log's end that are shown."""
RECENT = 100
"""Steps over which the present speed is taken."""
MOST_FOLDERS = 12
"""Folders of samples and checkpoints that are listed, newest first."""


def headline(run: Path, history: History, tokenizer: History, problems: list[str]) -> dict[str, Any]:
    """Return the line of a run in the list of runs."""
    status = _read(run / "status.json", problems) or {}
    if not isinstance(status, dict):
        problems.append(f"{run / 'status.json'}: not a JSON object")
        status = {}
    age = _age(run)
    curve = history if history.rows else tokenizer
    state = str(
        status.get("state", "tokenizer" if tokenizer.rows else "shards" if (run / "dataset.json").is_file() else "unknown")
    )
    step, steps = _last(curve, "step"), status.get("steps")
    speed = curve.column("seconds/total")[-RECENT:]
    seconds = float(np.nanmedian(speed)) if np.isfinite(speed).any() else None
    if state == "running":
        if _is_dead(status):
            state = "dead"
        elif age is not None and age > max(SILENT, 20 * (seconds or 0)):
            state = "silent"
    left = steps - step if isinstance(steps, int) and step is not None else 0
    return {
        "folder": str(run),
        "state": state,
        "line": str(status.get("line", "")),
        "step": step if step is not None else status.get("step"),
        "steps": steps,
        "age": age,
        "loss": _last(curve, "loss"),
        "tokens_per_second": _last(curve, "tokens_per_second"),
        "step_seconds": seconds,
        "left_seconds": left * seconds if seconds and left > 0 and state == "running" else None,
        "read": round(min(history.complete, tokenizer.complete), 3),
    }


def overview(run: Path, problems: list[str]) -> dict[str, Any]:
    """Return what the page of a run shows besides its headline, its curves and its shards."""
    record = _read(run / "run.json", problems)
    starts = record.get("starts", []) if isinstance(record, dict) else []
    starts = [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    return {
        "starts": starts,
        "ranks": list(_ranks(run, starts)),
        "checkpoints": list(_checkpoints(run)),
        "samples": list(_samples(run, problems)),
        "logs": [
            {"path": str(path.relative_to(run)), "bytes": path.stat().st_size, "age": time.time() - path.stat().st_mtime}
            for path in _logs(run)
        ],
        "aside": sorted(path.name for path in (run / "aside").glob("*")),
        "config": _text(run / "config.yaml"),
    }


def tail(path: Path) -> str:
    """Return the end of a text file, from the start of a line."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read()
    return (text if size <= TAIL_BYTES else text[text.find(b"\n") + 1 :]).decode(errors="replace")


def settings(run: Path, problems: list[str]) -> dict[str, Any]:
    """Return the configuration of a run, nested; empty where there is none."""
    try:
        plain = yaml.safe_load(_text(run / "config.yaml"))
    except yaml.YAMLError as error:
        problems.append(f"{run / 'config.yaml'}: not YAML: {str(error).splitlines()[0]}")
        return {}
    return plain if isinstance(plain, dict) else {}


def differing(all_settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the keys whose values are not the same in all runs, with the value in each."""
    flats = [flat(each) for each in all_settings]
    keys = sorted({key for each in all_settings[1:] for key in changed_keys(all_settings[0], each)})
    return [{"key": key, "values": [json.dumps(each.get(key), default=str) for each in flats]} for key in keys]


def _checkpoints(run: Path) -> Iterator[dict[str, Any]]:
    for kind in ("checkpoints", "tokenizer-checkpoints"):
        root = run / kind
        for path in listed(root)[:MOST_FOLDERS]:
            try:
                files = [each.stat() for each in path.rglob("*") if each.is_file()]
                wrong = damage(path, contents=False)
                yield {
                    "kind": kind,
                    "step": int(path.name.removeprefix("step-")),
                    "bytes": sum(each.st_size for each in files),
                    "time": path.stat().st_mtime,
                    "state": wrong or "sound",
                }
            except FileNotFoundError:  # pruned while it was looked at
                continue
        for path in sorted(root.glob("*.partial")):
            yield {"kind": kind, "step": path.name, "bytes": None, "time": None, "state": "being written, or left by a crash"}


def _ranks(run: Path, starts: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    hosts = starts[-1].get("hosts", []) if starts else []
    known = dict(enumerate(hosts if isinstance(hosts, list) else []))
    beats = heartbeat.read(run)
    for rank in sorted({*known, *beats}):
        row = {"rank": rank, "host": str(known.get(rank, ""))}
        if rank in beats:
            beat = beats[rank]
            row |= {
                "host": beat.host,
                "heartbeat age, s": round(time.time() - beat.time, 1),
                "step": beat.step,
                "phase": beat.phase,
            }
        yield row


def _samples(run: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    in_loop = sorted((run / "samples").glob("step-????????"), reverse=True)[:MOST_FOLDERS]
    for folder in (*in_loop, run / "samples" / "text", run / "samples" / "continuation", run / "reconstruction"):
        files = sorted(folder.glob("*.mp4"))
        if not files:
            continue
        note = next((folder / name for name in ("samples.json", "captions.json") if (folder / name).is_file()), None)
        said = _read(note, problems) if note else {}
        texts = said.get("prompts") or said.get("captions") or [] if isinstance(said, dict) else []
        yield {
            "title": str(folder.relative_to(run)),
            "clips": [
                {"path": str(path.relative_to(run)), "text": str(texts[number]) if number < len(texts) else path.stem}
                for number, path in enumerate(files[:16])
            ],
        }


def _logs(run: Path) -> list[Path]:
    return sorted(
        path for path in (*run.glob("*.log"), *run.glob("log/**/*.log"), *run.glob("log/*.stacks")) if path.is_file()
    )[:1100]


def _is_dead(status: Mapping[str, Any]) -> bool:
    """Return whether the process that wrote a status ran on this host and is gone."""
    pid = status.get("pid")
    return (
        status.get("host") == socket.gethostname()
        and isinstance(pid, int)
        and pid != os.getpid()
        and not psutil.pid_exists(pid)
    )


def _age(run: Path) -> float | None:
    ages = [_file_age(run / name) for name in ("metrics.jsonl", "tokenizer-metrics.jsonl", "status.json", "dataset.json")]
    return min((age for age in ages if age is not None), default=None)


def _file_age(path: Path) -> float | None:
    try:
        return round(max(0.0, time.time() - path.stat().st_mtime), 1)
    except OSError:  # not there
        return None


def _last(history: History, name: str) -> float | None:
    values = history.column(name)
    return float(values[-1]) if len(values) and np.isfinite(values[-1]) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # not there
        return ""


def _read(path: Path, problems: list[str]) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, DamagedFile) as error:
        problems.append(one_line(error))
        return None
