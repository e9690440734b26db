"""Runs the cases in processes of their own, each under a time limit, and lets none of them harm the others.

The parent imports PyTorch and DeepSpeed once and forks: it never touches the card, so a child begins in a moment with a card of its
own. Where an import did touch it, the child starts anew as a fresh interpreter. A child writes the line of each case that it ends;
of a case that did not end, the parent writes why.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.gpu import results
from benchmarks.gpu.bench import Bench, CannotMeasure
from benchmarks.gpu.cases import Case
from benchmarks.gpu.job import LOG, last_line

POLL = 0.05


@dataclass(frozen=True)
class Cut:
    """How a run ended."""

    failed: tuple[str, ...]
    left: tuple[str, ...]
    """Cases for which no time was left."""


def run(
    todo: Sequence[Case], bench: Bench, deadline: float, fresh: Callable[[Sequence[str]], list[str]], say: Callable[[str], None]
) -> Cut:
    """Run the cases that share a process together, one process after the other, until `deadline` (time.monotonic)."""
    failed: list[str] = []
    waiting = list(todo)
    while waiting:
        group = [case for case in waiting if case.process == waiting[0].process]
        if time.monotonic() >= deadline:
            break
        ended, stopped = _process(group, bench, deadline, fresh)
        for name, line in ended.items():
            say(f"{name}: {line['seconds']:.0f} s" if line["ok"] else f"{name}: {line['error']}")
            failed += [] if line["ok"] else [name]
        waiting = [case for case in waiting if case.name not in ended]
        if stopped:
            break
    return Cut(tuple(failed), tuple(case.name for case in waiting))


def _process(
    group: Sequence[Case], bench: Bench, deadline: float, fresh: Callable[[Sequence[str]], list[str]]
) -> tuple[dict[str, results.Line], bool]:
    """Run one process. Returns the lines of the cases that ended, by name, and whether the deadline stopped it."""
    log = bench.out / LOG
    begins = log.stat().st_size if log.is_file() else 0
    known = _lines(bench)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(group, bench, fresh)
    began, seen = time.monotonic(), 0
    try:
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            new = [case for case in group if _lines(bench).get(case.name, 0) > known.get(case.name, 0)]
            if len(new) != seen:
                began, seen = time.monotonic(), len(new)
            if found:
                why = "" if status == 0 else _why(status, log, begins)
                break
            now = time.monotonic()
            if now >= deadline:
                _kill(pid)
                return _ended(new, bench), True
            limit = group[seen].limit if seen < len(group) else 30.0
            if now - began > limit:
                _kill(pid)
                why = f"no result after {limit:.0f} s; its last line: {_tail(log, begins)}"
                break
            time.sleep(POLL)
    except BaseException:
        _kill(pid)
        raise
    if seen < len(group):
        _record(group[seen], bench, time.monotonic() - began, why or "ended without a result")
        new = [*new, group[seen]]
    return _ended(new, bench), False


def _lines(bench: Bench) -> dict[str, int]:
    """How many lines each case has."""
    path, found = bench.out / results.FILE, dict[str, int]()
    for text in path.read_text().splitlines() if path.is_file() else ():
        name = text.partition('"case": "')[2].partition('"')[0]
        found[name] = found.get(name, 0) + int(text.endswith("}"))
    return found


def _ended(cases: Sequence[Case], bench: Bench) -> dict[str, results.Line]:
    lines = results.read(bench.out)
    return {case.name: lines[case.name] for case in cases}


def _record(case: Case, bench: Bench, seconds: float, error: str) -> None:
    results.append(bench.out, {**_head(case, bench), "ok": False, "seconds": seconds, "error": error})


def _head(case: Case, bench: Bench) -> dict[str, object]:
    import torch

    return {"case": case.name, "section": case.section, "card": bench.name, "torch": torch.__version__, "dry_run": bench.dry}


def _kill(pid: int) -> None:
    """End a child and all that it started; it has its own process group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)  # it has not made its group yet
    os.waitpid(pid, 0)


def _why(status: int, log: Path, begins: int) -> str:
    tail = _tail(log, begins)
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}; its last line: {tail}"
    return tail


def _tail(log: Path, begins: int) -> str:
    with log.open(errors="replace") as file:
        file.seek(begins)
        return last_line(file.read())[:500]


def _child(group: Sequence[Case], bench: Bench, fresh: Callable[[Sequence[str]], list[str]]) -> NoReturn:
    """Become the process of these cases."""
    import torch

    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    file = os.open(bench.out / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    if torch.cuda._is_in_bad_fork():
        command = fresh([case.name for case in group])
        try:
            os.execv(command[0], command)
        finally:  # only after an error: this process must not go on as its parent would
            traceback.print_exc()
            os._exit(1)
    work(group, bench)


def work(group: Sequence[Case], bench: Bench) -> NoReturn:
    """Run the cases in this process and end it; an error that is not foreseen ends it with a traceback."""
    code = 1
    try:
        faulthandler.enable(file=sys.stderr)
        for case in group:
            _one(case, bench)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without the shutdown of DeepSpeed and NCCL, which may wait or abort


def _one(case: Case, bench: Bench) -> None:
    import torch

    began = time.perf_counter()
    print(f"== {case.name}", flush=True)
    try:
        measured = case.run(bench)
    except (CannotMeasure, torch.OutOfMemoryError) as error:
        traceback.print_exc()
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        _record(case, bench, time.perf_counter() - began, text)
        return
    line = {**_head(case, bench), "ok": True, "seconds": time.perf_counter() - began, "figures": measured}
    results.append(bench.out, line)
