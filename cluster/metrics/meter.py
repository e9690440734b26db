"""Prometheus metrics of one process: set by name, served over HTTP. The only module that imports prometheus_client."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.config.errors import ConfigError
from cluster.metrics import heartbeat
from cluster.metrics.declarations import METRICS
from cluster.metrics.step_report import StepReport
from cluster.runtime.atomic_files import write_text

MOST_RANKS = 64
"""Ranks up to which each has a series of its own; of more, only those OLDEST that were silent for longest."""
OLDEST = 16
SECONDS_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper bounds of the histograms' buckets."""


class MetricsPortError(ConfigError):
    """The metrics port cannot be used; the message names the port and the fix."""


class _Heartbeats(Collector):
    """The ranks' own heartbeats, read when Prometheus asks: a rank that is stopped stands still alone."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def collect(self) -> Iterator[GaugeMetricFamily]:
        metric = METRICS["train_heartbeat_timestamp_seconds"]
        family = GaugeMetricFamily(metric.exported, metric.help, labels=metric.labels)
        beats = sorted(heartbeat.read(self._run).values(), key=lambda beat: beat.time)
        for beat in beats if len(beats) <= MOST_RANKS else beats[:OLDEST]:
            family.add_metric([str(beat.rank)], beat.time)
        yield family


class Meter:
    """Holds the metrics of one process and, once `serve` is called, answers Prometheus.

    Metrics are named as in METRICS, without the prefix; an undeclared name raises KeyError.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._instruments: dict[str, Any] = {}
        self._server: Any = None

    def _get(self, name: str, kind: str, labels: Mapping[str, str]) -> Any:
        metric = METRICS[name]
        if metric.kind != kind:
            raise KeyError(f"metric {name} is a {metric.kind}, not a {kind}")
        if name not in self._instruments:
            exported = metric.exported
            if metric.kind == "counter":
                self._instruments[name] = Counter(
                    exported.removesuffix("_total"), metric.help, metric.labels, registry=self.registry
                )
            elif metric.kind == "gauge":
                self._instruments[name] = Gauge(exported, metric.help, metric.labels, registry=self.registry)
            else:
                self._instruments[name] = Histogram(
                    exported, metric.help, metric.labels, registry=self.registry, buckets=SECONDS_BUCKETS
                )
        instrument = self._instruments[name]
        return instrument.labels(**labels) if metric.labels else instrument

    def begin(self, prefix: str) -> None:
        """Export the declared counters whose names begin with `prefix` at 0, those of a label by its declared values."""
        for metric in METRICS.values():
            if metric.kind == "counter" and metric.name.startswith(prefix):
                for labels in [{metric.labels[0]: value} for value in metric.values] if metric.labels else [{}]:
                    self.inc(metric.name, 0.0, **labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._get(name, "gauge", labels).set(value)

    def inc(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        self._get(name, "counter", labels).inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one observation to a histogram."""
        self._get(name, "histogram", labels).observe(value)

    def listen(self, run: Path) -> None:
        """Export the heartbeats that the ranks of a run write (heartbeat.py), as they are when they are asked for."""
        self.registry.register(_Heartbeats(run))

    def serve(self, host: str, port: int, address_file: Path | None = None) -> str:
        """Start the HTTP endpoint; port 0 picks a free port.

        Returns `host:port` and writes it to `address_file`. Raises MetricsPortError when the port cannot be bound.
        """
        try:
            self._server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise MetricsPortError(
                f"metrics port {host}:{port}: {error.strerror}; set metrics.port to a free port, or to 0 to pick any"
            ) from error
        address = f"{host}:{self._server.server_port}"
        if address_file is not None:
            write_text(address_file, address + "\n")
        return address

    def close(self) -> None:
        """Stop the HTTP endpoint."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def step(self, report: StepReport) -> None:
        """Export one training step."""
        self.set("train_step", report.step)
        self.set("train_stage", report.stage)
        self.set("train_loss", report.loss)
        for scale, loss in report.scale_loss.items():
            self.set("train_scale_loss", loss, scale=scale)
        for scale, accuracy in report.bit_accuracy.items():
            self.set("train_bit_accuracy_ratio", accuracy, scale=scale)
        self.set("train_grad_norm", report.grad_norm)
        self.set("train_learning_rate", report.learning_rate)
        self.inc("train_tokens_total", report.tokens)
        total = report.seconds.get("total", 0.0)
        if total > 0:
            self.set("train_tokens_per_second", report.tokens / total)
        if not math.isnan(report.mfu):
            self.set("train_mfu_ratio", report.mfu)
        self.set("train_padding_ratio", report.padding)
        self.inc("train_compilations_total", report.compilations)
        for phase, seconds in report.seconds.items():
            self.set("train_phase_seconds", seconds, phase=phase)
        self.inc("train_data_wait_seconds_total", report.seconds.get("data", 0.0))
        for kind, size in report.memory.items():
            self.set("train_memory_bytes", size, kind=kind)
        if report.skipped:
            self.inc("train_skipped_steps_total", reason=report.skipped)
