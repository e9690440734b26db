"""What a training run reports: console, metrics.jsonl, status.json, Prometheus, TensorBoard. Rank 0 writes, the others are silent.

In:  one StepReport per step, lines, the state of the job.
Out: RUN/metrics.jsonl, RUN/log/rank-0.log, RUN/status.json for supervisors and monitors, RUN/metrics-address with the endpoint,
     RUN/tensorboard if asked for.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from cluster.config import MetricsConfig
from cluster.metrics import JsonLines, Meter, StepReport
from cluster.runtime.atomic_files import DamagedFile, read_json, write_text
from cluster.runtime.exit_codes import restart_count


def log_file(run: Path, rank: int) -> Path:
    """Return RUN/log/rank-N.log: rank 0 keeps its console lines there, every rank its last error."""
    return run / "log" / f"rank-{rank}.log"


class RunLogger:
    """Context manager; on ranks other than 0, every call does nothing."""

    def __init__(self, run: Path, rank: int, metrics: MetricsConfig, *, log_every: int, tensorboard: bool) -> None:
        self.active = rank == 0
        self.log_every = log_every
        self.meter = Meter()
        self._console = Console(highlight=False, soft_wrap=True)
        self._board: Any = None
        if not self.active:
            return
        path = log_file(run, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = path.open("a")
        self._lines = JsonLines(run / "metrics.jsonl")
        self.meter.inc("train_restarts_total", restart_count())
        if metrics.enabled:
            address = self.meter.serve(metrics.host, metrics.port, run / "metrics-address")
            self.log(f"metrics at http://{address}/metrics")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"))  # type: ignore[no-untyped-call]

    def log(self, line: str) -> None:
        """Print one line and append it to RUN/log."""
        if self.active:
            self._console.print(line, markup=False)
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            self._log.flush()

    def step(self, report: StepReport, steps: int, ranks: int) -> None:
        """Report one step."""
        if not self.active:
            return
        self._lines.write(report)
        self.meter.step(report)
        now = time.time()
        for rank in range(ranks):
            # Every rank took part in the step's all-reduce, otherwise the step would not have ended.
            self.meter.set("train_heartbeat_timestamp_seconds", now, rank=str(rank))
        if self._board is not None:
            for name, value in _scalars(report).items():
                self._board.add_scalar(name, value, report.step)
        if report.step % self.log_every == 0 or report.skipped:
            self.log(console_line(report, steps))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send values that are not part of a step's report (validation losses) to TensorBoard."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.meter.close()
        if self.active:
            self._lines.close()
            self._log.close()
        if self._board is not None:
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
    """Write RUN/status.json; `state` is running, stopped, finished or failed."""
    plain = {"state": state, "step": step, "steps": steps, "line": line, "host": socket.gethostname(), "pid": os.getpid()}
    write_text(run / "status.json", json.dumps(plain) + "\n")


def mark_failed(run: Path, line: str) -> None:
    """Change RUN/status.json from running to failed, with the error's line, if this process wrote it."""
    path = run / "status.json"
    if path.is_file():
        try:
            plain = read_json(path)
        except DamagedFile:
            return  # nothing is known of who wrote it, and the error that ended the run is reported already
        if plain["state"] == "running" and plain["pid"] == os.getpid():
            write_status(run, "failed", plain["step"], plain["steps"], line)


def truncate_metrics(path: Path, step: int) -> int:
    """Cut metrics.jsonl after the line of `step`, also dropping an incomplete last line. Returns the number of bytes removed.

    The file is cut in place: its writer may already have it open, and readers may be following it.
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
