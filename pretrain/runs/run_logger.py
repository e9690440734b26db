"""What a training run reports: console, metrics.jsonl, status.json, Prometheus, TensorBoard. Rank 0 writes, the others are silent.

In:  one StepReport per step, lines, the state of the job.
Out: RUN/metrics.jsonl, RUN/log/rank-0.log, RUN/status.json for supervisors and monitors, RUN/metrics-address with the endpoint
     (cluster/metrics/endpoint.py),
     RUN/tensorboard if asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from cluster.config import ConfigError, MetricsConfig
from cluster.metrics import Endpoint, JsonLines, Meter, StepReport, last_step
from cluster.runtime.atomic_files import DamagedFile, DiskFull, read_json, write_text
from cluster.runtime.checkpoint_folders import set_aside
from cluster.runtime.errors import one_line
from cluster.runtime.job_protocol import restart_count

LINES = ("metrics", "validation", "skipped")
"""RUN/NAME.jsonl: a line per step, per validation of a stream, per skipped step."""


def log_file(run: Path, rank: int) -> Path:
    """Return RUN/log/rank-N.log: rank 0 keeps its console lines there, every rank its last error."""
    return run / "log" / f"rank-{rank}.log"


def begin_rank_log(run: Path, rank: int) -> None:
    """Begin this start's part of RUN/log/rank-N.log with the rank's host and process."""
    line = f"rank {rank} of {os.environ.get('WORLD_SIZE', '1')} on {socket.gethostname()}, process {os.getpid()}, restart {restart_count()}"
    with contextlib.suppress(OSError):  # a full disk ends no rank
        log_file(run, rank).parent.mkdir(parents=True, exist_ok=True)
        with log_file(run, rank).open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


class _Console(Console):
    """A console whose reader may go away (a launcher that was killed): RUN/log has the lines."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class LoggerError(ConfigError):
    """What is asked for cannot be reported; the message names the key."""


class RunLogger:
    """Context manager; on ranks other than 0, every call does nothing. No report that fails (a full disk) ends training."""

    def __init__(
        self, run: Path, rank: int, metrics: MetricsConfig, *, log_every: int, tensorboard: bool, name: str = ""
    ) -> None:
        """Raise LoggerError, OSError, MetricsPortError or TargetError for what cannot be written or served from the start.

        name: of the run, on dashboards.
        """
        self.run, self.active, self.log_every = run, rank == 0, log_every
        self.meter = Meter()
        self._console = _Console(highlight=False, soft_wrap=True)
        self._endpoint: Endpoint | None = None
        self._board: Any = None
        self._tensorboard = tensorboard
        self._failing: dict[str, int] = {}
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise LoggerError("train.tensorboard=true needs the package tensorboard: install it, or set it to false")
        if not self.active:
            return
        path = log_file(run, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = path.open("ab", buffering=0)
        self._lines = {name: JsonLines(run / f"{name}.jsonl") for name in LINES}
        self.meter.begin("train_")
        self.meter.inc("train_restarts_total", restart_count())
        for metric in ("train_last_step_timestamp_seconds", "train_checkpoint_last_success_timestamp_seconds"):
            self.meter.set(metric, time.time())  # a hang before the first one rings, too
        self.meter.listen(run)
        self.meter.watch_disk(run)
        if metrics.enabled:
            self._endpoint = Endpoint(self.meter, metrics, run, name)
            self.log(f"metrics at http://{self._endpoint.address}/metrics")

    def begin(self, step: int) -> None:
        """Set aside the reports and samples of steps after `step`, the last one that is trained: they are trained again."""
        if not self.active:
            return
        for name in LINES:
            path = self.run / f"{name}.jsonl"
            rest = truncate_metrics(path, step)
            if rest:
                copy = path.with_name(f"{name}-after-step-{step}.jsonl")
                try:
                    copy.write_bytes(rest)
                    self.log(f"{path.name}: lines after step {step} are set aside as {set_aside(copy, self.run)}")
                except OSError as error:
                    self.aside(path.name, error)
        for folder in sorted((self.run / "samples").glob("step-????????")):
            if int(folder.name.removeprefix("step-")) > step:
                self.log(f"samples/{folder.name} is set aside as {set_aside(folder, self.run)}")
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.run / "tensorboard"), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def log(self, line: str) -> None:
        """Print one line and append it to RUN/log."""
        if not self.active:
            return
        with contextlib.suppress(OSError):  # nobody can be told that there is no room for telling
            self._console.print(line, markup=False)
        try:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())
        except OSError as error:
            self._count("log", error)

    def aside(self, what: str, error: BaseException | str) -> None:
        """Count and log a failure of something that is not the step. In a row of alike ones, only the 1st, 10th, 100th is logged."""
        if not self.active:
            return
        times = self._count(what, error)
        if times in (1, 10) or times % 100 == 0:
            often = f" ({times} times)" if times > 1 else ""
            self.log(f"{what}: {one_line(error) if isinstance(error, BaseException) else error}{often}; training goes on")

    def _count(self, what: str, error: BaseException | str) -> int:
        self.meter.inc("train_aside_failures_total", what=what)
        self._failing[what] = self._failing.get(what, 0) + 1
        return self._failing[what]

    def line(self, name: str, record: StepReport | Mapping[str, Any]) -> None:
        """Append a record to RUN/NAME.jsonl, one of LINES."""
        if self.active:
            problem = self._lines[name].write(record)
            if problem:
                self.aside(f"{name}.jsonl", problem)

    def step(self, report: StepReport, steps: int) -> None:
        """Report one step."""
        if not self.active:
            return
        self.line("metrics", report)
        self.meter.step(report, steps)
        self.meter.set("train_last_step_timestamp_seconds", time.time())
        self.scalars(report.step, _scalars(report))
        if report.step % self.log_every == 0 or report.skipped:
            self.log(console_line(report, steps))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send values to TensorBoard."""
        if self._board is None:
            return
        try:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            self.aside("tensorboard", error)

    def status(self, state: str, step: int, steps: int, line: str = "") -> None:
        """Write RUN/status.json."""
        if self.active:
            try:
                write_status(self.run, state, step, steps, line)
            except OSError as error:
                self.aside("status.json", error)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._endpoint is not None:
            self._endpoint.close(well=kind is None)
        if self.active:
            for lines in self._lines.values():
                lines.close()
            self._log.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()


def console_line(report: StepReport, steps: int) -> str:
    """Return the console line of a step."""
    total = report.seconds.get("total", 0.0)
    rate = report.tokens / total if total > 0 else 0.0
    accuracy = list(report.bit_accuracy.values())
    bits = f"bits {accuracy[0]:.3f}..{accuracy[-1]:.3f}" if accuracy else ""
    mfu = f" mfu {100 * report.mfu:.0f}%" if report.mfu == report.mfu else ""
    skipped = f" SKIPPED ({report.skipped})" if report.skipped else ""
    return (
        f"step {report.step}/{steps} {report.stage_name} {report.bucket} loss {report.loss:.5f} {bits} "
        f"grad {report.grad_norm:.3f} lr {report.learning_rate:.2e} {rate:,.0f} tok/s {total:.2f} s "
        f"(data {report.seconds.get('data', 0.0):.3f}){mfu}{skipped}"
    )


def _scalars(report: StepReport) -> dict[str, float]:
    found = {"loss": report.loss, "grad_norm": report.grad_norm, "learning_rate": report.learning_rate}
    found |= {f"scale_loss/{scale}": value for scale, value in report.scale_loss.items()}
    found |= {f"bit_accuracy/{scale}": value for scale, value in report.bit_accuracy.items()}
    return found


def write_status(run: Path, state: str, step: int, steps: int, line: str = "") -> None:
    """Write RUN/status.json; `state` is running, stopped, finished or failed. On a full disk, over the old one. Raises OSError."""
    plain = {"state": state, "step": step, "steps": steps, "line": line, "host": socket.gethostname(), "pid": os.getpid()}
    text = json.dumps(plain) + "\n"
    try:
        write_text(run / "status.json", text)
    except DiskFull:
        (run / "status.json").write_text(text)


def mark_failed(run: Path, line: str) -> None:
    """Change RUN/status.json from running to failed, with the last step and the error's line, if this process wrote it."""
    path = run / "status.json"
    try:
        plain = read_json(path)
    except (OSError, DamagedFile):
        return
    if plain["state"] == "running" and (plain["pid"], plain["host"]) == (os.getpid(), socket.gethostname()):
        with contextlib.suppress(OSError):  # the error itself is on the console already
            write_status(run, "failed", max(plain["step"], last_step(run / "metrics.jsonl")), plain["steps"], line)


def truncate_metrics(path: Path, step: int) -> bytes:
    """Cut a file of lines after the lines of `step`, also dropping an incomplete last line. Returns what was cut.

    The file is cut in place: its writer may already have it open, and readers may be following it.
    """
    if not path.is_file():
        return b""
    kept = 0
    with path.open("rb") as file:
        for text in file:
            try:
                if not text.endswith(b"\n") or json.loads(text)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept += len(text)
        file.seek(kept)
        rest = file.read()
    if rest:
        os.truncate(path, kept)
    return rest
