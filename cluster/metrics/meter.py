"""The one door to Prometheus: every metric is declared here once, and served, logged and plotted from here.

In:  figures by declared name (`Meter.set/inc/observe`) and one `StepReport` a training step.
Out: Prometheus text over HTTP (loopback unless told otherwise) and lines of metrics.jsonl.
Called by: every package. This file imports none of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

PREFIX = "videoar_"
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class MetricsPortError(OSError):
    """The metrics port cannot be served; the message names it and the mend."""


@dataclass(frozen=True)
class Metric:
    """One declaration. `name` is without the prefix and holds the unit; labels are few and bounded."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Name on the wire, such as videoar_train_loss."""
        return PREFIX + self.name


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("pipeline_videos_total", "counter", "Videos with an outcome.", ("outcome",)),
        Metric(
            "pipeline_clips_total", "counter", "Clips with an outcome; reason is empty for encoded ones.", ("outcome", "reason")
        ),
        Metric("pipeline_frames_total", "counter", "Pixel frames encoded."),
        Metric("pipeline_tokens_total", "counter", "Latent positions written, over all scales."),
        Metric("pipeline_shards_committed_total", "counter", "Shards committed."),
        Metric("pipeline_stage_seconds", "histogram", "Seconds of one unit of work in a stage.", ("stage",)),
        Metric("pipeline_retries_total", "counter", "Units of work given to another worker after a death.", ("stage",)),
        Metric(
            "pipeline_software_decodes_total",
            "counter",
            "Videos that the decoding card left to the CPU.",
            ("stage", "codec"),
        ),
        Metric("pipeline_decoder_deaths_total", "counter", "Decoding children that died or were ended.", ("stage",)),
        Metric(
            "pipeline_worker_heartbeat_timestamp_seconds", "gauge", "Unix time of an encoding worker's last sign.", ("worker",)
        ),
        Metric("pipeline_progress_ratio", "gauge", "Share of the planned shards that are committed, 0 to 1."),
        Metric("train_step", "gauge", "Last finished optimizer step."),
        Metric("train_stage", "gauge", "Curriculum stage, counted from 0."),
        Metric("train_loss", "gauge", "Loss of the last step, nats a bit."),
        Metric("train_scale_loss", "gauge", "Loss of one scale, nats a bit.", ("scale",)),
        Metric("train_bit_accuracy_ratio", "gauge", "Share of bits predicted right at one scale, 0 to 1.", ("scale",)),
        Metric("train_grad_norm", "gauge", "Gradient norm before clipping."),
        Metric("train_learning_rate", "gauge", "Learning rate of the last step."),
        Metric("train_tokens_total", "counter", "Positions trained on, text and video, all ranks."),
        Metric("train_tokens_per_second", "gauge", "Positions a second, all ranks."),
        Metric("train_mfu_ratio", "gauge", "Model FLOPs over the device's peak, 0 to 1."),
        Metric("train_phase_seconds", "gauge", "Seconds of a phase of the last step.", ("phase",)),
        Metric("train_data_wait_seconds_total", "counter", "Seconds the step waited for data."),
        Metric("train_skipped_steps_total", "counter", "Steps that changed no weight.", ("reason",)),
        Metric("train_corrupt_samples_total", "counter", "Samples that did not match their checksum and were replaced."),
        Metric("train_heartbeat_timestamp_seconds", "gauge", "Unix time of a rank's last step.", ("rank",)),
        Metric("train_checkpoint_seconds", "gauge", "Seconds the last checkpoint held up training."),
        Metric("train_checkpoint_last_success_timestamp_seconds", "gauge", "Unix time of the newest whole checkpoint."),
        Metric("train_memory_bytes", "gauge", "Memory by kind: resident, peak, device.", ("kind",)),
        Metric("train_restarts_total", "counter", "Times the job was started again from a checkpoint."),
        Metric("tokenizer_step", "gauge", "Last finished step of tokenizer training."),
        Metric("tokenizer_loss", "gauge", "Weighted sum of the generator's terms, last step."),
        Metric("tokenizer_term", "gauge", "One unweighted term of the losses, last step.", ("term",)),
        Metric("tokenizer_psnr_db", "gauge", "PSNR of the last step's reconstructions."),
        Metric(
            "tokenizer_bit_entropy_bits",
            "gauge",
            "Entropy of the mean bit of a scale: 1 both values alike, 0 dead.",
            ("scale",),
        ),
        Metric("tokenizer_grad_norm", "gauge", "Gradient norm of the generator before clipping."),
        Metric("tokenizer_learning_rate", "gauge", "Learning rate of the generator."),
        Metric("tokenizer_clips_total", "counter", "Clips trained on since this start, all ranks."),
        Metric("tokenizer_phase_seconds", "gauge", "Seconds of a phase of the last step.", ("phase",)),
        Metric("tokenizer_data_wait_seconds_total", "counter", "Seconds the step waited for decoded clips."),
        Metric("tokenizer_heartbeat_timestamp_seconds", "gauge", "Unix time of the last step."),
    )
}


@dataclass(frozen=True)
class StepReport:
    """One training step, as it goes to the console, metrics.jsonl and Prometheus. Sums are over all ranks."""

    step: int
    """Optimizer step, counted from 1: the step that has just ended."""
    stage: int
    """Stage number, from 0."""
    stage_name: str
    bucket: str
    """Shape of the step's batch, such as f009x64x64."""
    loss: float
    """Nats a bit, weighted by scale; normalised over the global batch."""
    scale_loss: dict[str, float]
    """Plain mean nats a bit at each scale; the key is `HxW` of the scale."""
    bit_accuracy: dict[str, float]
    """Share of bits right at each scale; same keys."""
    grad_norm: float
    learning_rate: float
    tokens: int
    """Positions of this step, text and video, all ranks."""
    seconds: dict[str, float]
    """Seconds by phase: total, data, forward, backward, optimizer."""
    memory: dict[str, int]
    """Bytes by kind: resident, peak, device."""
    skipped: str = ""
    """Reason when the step changed no weight."""
    frame_loss: list[float] = field(default_factory=list)
    """Plain mean nats a bit at each latent frame."""
    sample_ids: list[str] = field(default_factory=list)
    """Keys of the global batch in order."""
    mfu: float = math.nan


class Meter:
    """Declared metrics of one process, optionally served over HTTP.

    Names are those of METRICS without the prefix. Raises KeyError for an undeclared name.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, Any] = {}
        self._server: Any = None

    def _get(self, name: str, kind: str, labels: Mapping[str, str]) -> Any:
        metric = METRICS[name]
        if metric.kind != kind:
            raise KeyError(f"metric {name} is a {metric.kind}, not a {kind}")
        if name not in self._made:
            exported = metric.exported
            if metric.kind == "counter":
                self._made[name] = Counter(exported.removesuffix("_total"), metric.help, metric.labels, registry=self.registry)
            elif metric.kind == "gauge":
                self._made[name] = Gauge(exported, metric.help, metric.labels, registry=self.registry)
            else:
                self._made[name] = Histogram(exported, metric.help, metric.labels, registry=self.registry, buckets=SECONDS)
        made = self._made[name]
        return made.labels(**labels) if metric.labels else made

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._get(name, "gauge", labels).set(value)

    def inc(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        self._get(name, "counter", labels).inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one observation to a histogram."""
        self._get(name, "histogram", labels).observe(value)

    def serve(self, host: str, port: int, address_file: Path | None = None) -> str:
        """Serve the registry over HTTP; port 0 takes a free one.

        Returns `host:port` and writes it to `address_file`. Raises MetricsPortError, with the port in its text, when it is in use.
        """
        try:
            self._server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise MetricsPortError(
                f"metrics port {host}:{port}: {error.strerror}; set metrics.port to a free port, or to 0 to take any"
            ) from error
        address = f"{host}:{self._server.server_port}"
        if address_file is not None:
            address_file.parent.mkdir(parents=True, exist_ok=True)
            address_file.write_text(address + "\n")
        return address

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def step(self, report: StepReport) -> None:
        """Publish one training step."""
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
        for phase, seconds in report.seconds.items():
            self.set("train_phase_seconds", seconds, phase=phase)
        self.inc("train_data_wait_seconds_total", report.seconds.get("data", 0.0))
        for kind, size in report.memory.items():
            self.set("train_memory_bytes", size, kind=kind)
        if report.skipped:
            self.inc("train_skipped_steps_total", reason=report.skipped)


class JsonLines:
    """Appends one JSON object a line and flushes it; the reader may follow the file while the job runs."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a")

    def write(self, record: StepReport | Mapping[str, Any]) -> None:
        """Write one record. NaN becomes null, so that every JSON reader takes the line."""
        plain = asdict(record) if isinstance(record, StepReport) else dict(record)
        self._file.write(json.dumps(_finite(plain), sort_keys=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
