"""Metrics of tokenizer training, as JSON lines and for Prometheus. Only the first rank writes.

In:  the metrics of each step.
Out: RUN/tokenizer-metrics.jsonl (every `log_every` steps), RUN/metrics-address with the Prometheus endpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.config import MetricsConfig
from cluster.metrics import Endpoint, JsonLines, Meter

METRICS = "tokenizer-metrics.jsonl"
TERMS = ("l1", "l2", "perceptual", "gan", "commitment", "entropy", "discriminator", "lecam")
GAUGES = {"loss": "loss", "psnr": "psnr_db", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}


class RunLogger:
    """Context manager; on ranks other than the first every call does nothing.

    begin: finished steps; lines of later steps, which an interrupted run may have written, are removed.
    name: of the run, on dashboards.
    Raises MetricsPortError when the endpoint's port is in use, TargetError when its target cannot be written.
    """

    def __init__(self, run: Path, first: bool, config: MetricsConfig, begin: int, name: str = "") -> None:
        self.meter = Meter()
        self._endpoint: Endpoint | None = None
        self._lines: JsonLines | None = None
        self._failing = False
        if not first:
            return
        run.mkdir(parents=True, exist_ok=True)
        self.meter.begin("tokenizer_")
        self.meter.set("tokenizer_heartbeat_timestamp_seconds", time.time())  # a hang before the first step rings, too
        self.meter.watch_disk(run)
        if config.enabled:
            self._endpoint = Endpoint(self.meter, config, run, name)
            print(f"tokenizer: metrics at http://{self._endpoint.address}/metrics", flush=True)
        self._lines = JsonLines(_truncated(run / METRICS, begin))

    def log(self, metrics: Mapping[str, Any], *, write: bool) -> None:
        """Publish the metrics of one step, with `write` also as a line of the file."""
        if self._lines is None:
            return
        if write:
            problem = self._lines.write(metrics)
            if problem and not self._failing:
                print(f"tokenizer: {problem}; training goes on, and the lines are written once there is room", flush=True)
            self._failing = bool(problem)
        meter, seconds = self.meter, metrics["seconds"]
        meter.set("tokenizer_step", metrics["step"])
        for name, metric in GAUGES.items():
            meter.set(f"tokenizer_{metric}", metrics[name])
        for term in TERMS:
            if term in metrics:
                meter.set("tokenizer_term", metrics[term], term=term)
        for scale, entropy in metrics["bit_entropy"].items():
            if entropy == entropy:  # NaN: the scale was dropped
                meter.set("tokenizer_bit_entropy_bits", entropy, scale=scale)
        for phase, value in seconds.items():
            meter.set("tokenizer_phase_seconds", value, phase=phase)
        meter.inc("tokenizer_clips_total", metrics["clips"])
        meter.inc("tokenizer_data_wait_seconds_total", seconds["data"])
        meter.set("tokenizer_heartbeat_timestamp_seconds", time.time())

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._endpoint is not None:
            self._endpoint.close(well=kind is None)
        if self._lines is not None:
            self._lines.close()


def _truncated(path: Path, step: int) -> Path:
    """Remove the lines of steps after `step`, and return the path."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))
    return path
