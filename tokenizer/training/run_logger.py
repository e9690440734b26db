"""What tokenizer training tells: lines of figures and Prometheus. The first rank writes, the others are silent.

In:  the figures of each step.
Out: RUN/tokenizer-metrics.jsonl (each `log_every` steps), RUN/metrics-address with the endpoint.
Called by: tokenizer/training/train.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.config import MetricsConfig
from cluster.metrics import JsonLines, Meter

METRICS = "tokenizer-metrics.jsonl"
TERMS = ("l1", "l2", "perceptual", "gan", "commitment", "entropy", "discriminator", "lecam")
GAUGES = {"loss": "loss", "psnr": "psnr_db", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}


class Journal:
    """Context manager; on ranks other than the first every call does nothing.

    begin: steps that are done; lines of later steps, which a run that died may have written, are dropped.
    Raises MetricsPortError when the endpoint's port is in use.
    """

    def __init__(self, run: Path, first: bool, metrics: MetricsConfig, begin: int) -> None:
        self.meter = Meter()
        self._lines: JsonLines | None = None
        if not first:
            return
        run.mkdir(parents=True, exist_ok=True)
        if metrics.enabled:
            address = self.meter.serve(metrics.host, metrics.port, run / "metrics-address")
            print(f"tokenizer: metrics at http://{address}/metrics", flush=True)
        self._lines = JsonLines(_cut(run / METRICS, begin))

    def step(self, figures: Mapping[str, Any], *, write: bool) -> None:
        """Publish the figures of one step; with `write` also as a line."""
        if self._lines is None:
            return
        if write:
            self._lines.write(figures)
        meter, seconds = self.meter, figures["seconds"]
        meter.set("tokenizer_step", figures["step"])
        for name, metric in GAUGES.items():
            meter.set(f"tokenizer_{metric}", figures[name])
        for term in TERMS:
            if term in figures:
                meter.set("tokenizer_term", figures[term], term=term)
        for scale, entropy in figures["bit_entropy"].items():
            if entropy == entropy:  # a scale that was left out says nothing
                meter.set("tokenizer_bit_entropy_bits", entropy, scale=scale)
        for phase, value in seconds.items():
            meter.set("tokenizer_phase_seconds", value, phase=phase)
        meter.inc("tokenizer_clips_total", figures["clips"])
        meter.inc("tokenizer_data_wait_seconds_total", seconds["data"])
        meter.set("tokenizer_heartbeat_timestamp_seconds", time.time())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.meter.close()
        if self._lines is not None:
            self._lines.close()


def _cut(path: Path, step: int) -> Path:
    """Drop the lines of steps after `step` from an earlier run's figures."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))
    return path
