"""Prometheus metrics of one process: set by name, served over HTTP. The only module that imports prometheus_client."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.config.errors import ConfigError
from cluster.metrics import heartbeat
from cluster.metrics.declarations import METRICS
from cluster.metrics.step_report import Pace, StepReport
from cluster.runtime.atomic_files import write_text

MOST_RANKS = 64
"""Ranks up to which each has a series of its own; of more, only those OLDEST that were silent for longest."""
OLDEST = 16
SECONDS_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper bounds of the histograms' buckets."""


_OF_RANKS: Mapping[str, Callable[[heartbeat.Beat], float]] = {
    "train_rank_step_seconds": lambda beat: beat.step_seconds,
    "train_rank_data_seconds": lambda beat: beat.data_seconds,
    "train_rank_resident_bytes": lambda beat: beat.resident,
    "train_rank_device_bytes": lambda beat: beat.device,
}
"""What a rank says of itself, by metric; of more than MOST_RANKS, the OLDEST largest values are exported."""


class MetricsPortError(ConfigError):
    """The metrics port cannot be used; the message names the port and the fix."""


class _Scrapes(Collector):
    """Exports nothing: knows when Prometheus asked."""

    def __init__(self) -> None:
        self.times: list[float] = []
        """Of the last two scrapes, by the monotonic clock."""
        self.changed = threading.Condition()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Name nothing; without this method, registering would count as a scrape."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self.changed:
            self.times = [*self.times[-1:], time.monotonic()]
            self.changed.notify_all()
        return iter(())


class _Disk(Collector):
    """The free space of the disk that holds a folder, as it is when Prometheus asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return
        for name, value in (("disk_free_bytes", usage.free), ("disk_free_ratio", usage.free / max(1, usage.total))):
            yield GaugeMetricFamily(METRICS[name].exported, METRICS[name].help, value)


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
        for name, value in _OF_RANKS.items():
            measured = sorted((beat for beat in beats if beat.step > 0), key=value, reverse=True)
            family = GaugeMetricFamily(METRICS[name].exported, METRICS[name].help, labels=METRICS[name].labels)
            for beat in measured if len(beats) <= MOST_RANKS else measured[:OLDEST]:
                family.add_metric([str(beat.rank)], value(beat))
            yield family


class Meter:
    """Holds the metrics of one process and, once `serve` is called, answers Prometheus.

    Metrics are named as in METRICS, without the prefix; an undeclared name raises KeyError.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._instruments: dict[str, Any] = {}
        self._server: Any = None
        self._served = 0.0
        """When it began to answer, by the monotonic clock."""
        self._pace = Pace()
        self._scrapes = _Scrapes()
        self.registry.register(self._scrapes)

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
        """Export the declared counters whose names begin with `prefix` at 0, those of a label by its declared values (further labels empty)."""
        for metric in METRICS.values():
            if metric.kind == "counter" and metric.name.startswith(prefix):
                rest = dict.fromkeys(metric.labels[1:], "")
                for labels in [{metric.labels[0]: value, **rest} for value in metric.values] if metric.labels else [{}]:
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

    def watch_disk(self, folder: Path) -> None:
        """Export the free space of the disk that holds `folder`, as it is when Prometheus asks."""
        self.registry.register(_Disk(folder))

    def linger(self, seconds: float, *, known: bool) -> bool:
        """Wait until Prometheus has fetched the values as they are now, at most `seconds`; returns whether it did.

        Does not wait when nobody scrapes: unless two scrapes came, or for longer than two of the intervals between them. If Prometheus
        was told (`known`), one suffices, and a job that has answered for less than `seconds` waits for the first: files of targets are
        read every few seconds, so that a short job would leave unseen.
        """
        times, age = self._scrapes.times, time.monotonic() - self._served
        if self._server is None or (len(times) < 2 and not known) or (not times and age >= seconds):
            return False
        if not times:
            seconds -= age
        elif len(times) == 2:
            seconds = min(seconds, 2 * (times[1] - times[0]) + 1)
        if times and time.monotonic() - times[-1] > max(seconds, 1.0) + 1:
            return False
        with self._scrapes.changed:
            before = self._scrapes.times
            done = self._scrapes.changed.wait_for(lambda: self._scrapes.times is not before, seconds)
        if done:
            time.sleep(min(0.2, seconds))  # the answer leaves after it is collected
        return done

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
        self._served = time.monotonic()
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

    def step(self, report: StepReport, steps: int = 0) -> None:
        """Export one training step."""
        self.set("train_step", report.step)
        if steps:
            self.set("train_steps", steps)
            self.set("train_eta_seconds", self._pace.remaining(report, steps))
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
