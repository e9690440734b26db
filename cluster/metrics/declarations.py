"""DOC from cluster/metrics/meter.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PREFIX = "videoar_"


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
