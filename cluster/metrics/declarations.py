"""Every metric that a job exports, declared once: name, type, help text, labels.

The names, without their prefix, are what `Meter` takes; dashboards and alerts may query declared metrics only (a test checks it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PREFIX = "videoar_"


@dataclass(frozen=True)
class Metric:
    """Declaration of one metric. `name` has no prefix and ends in its unit; labels are few and take few values."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    """Of a counter: the values of its first label that are there from the start, at 0. A counter that first appears at 1 never rises."""

    @property
    def exported(self) -> str:
        """Name as Prometheus sees it, such as videoar_train_loss."""
        return PREFIX + self.name


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("pipeline_videos_total", "counter", "Videos processed, by outcome.", ("outcome",), ("planned", "refused")),
        Metric(
            "pipeline_clips_total",
            "counter",
            "Clips processed, by outcome; the reason is empty for encoded clips.",
            ("outcome", "reason"),
            ("encoded", "refused"),
        ),
        Metric("pipeline_frames_total", "counter", "Pixel frames encoded."),
        Metric("pipeline_tokens_total", "counter", "Tokens written, summed over all scales."),
        Metric("pipeline_shards_committed_total", "counter", "Shards committed."),
        Metric("pipeline_stage_seconds", "histogram", "Duration of one unit of work in a stage, in seconds.", ("stage",)),
        Metric(
            "pipeline_retries_total",
            "counter",
            "Units of work reassigned to another worker because their worker died.",
            ("stage",),
            ("plan", "encode"),
        ),
        Metric(
            "pipeline_software_decodes_total",
            "counter",
            "Videos that the GPU decoder could not handle and the CPU decoded.",
            ("stage", "codec"),
        ),
        Metric(
            "pipeline_decoder_deaths_total",
            "counter",
            "Decoder processes that crashed or were killed.",
            ("stage",),
            ("plan", "encode"),
        ),
        Metric(
            "pipeline_worker_heartbeat_timestamp_seconds",
            "gauge",
            "Unix time of an encoding worker's last heartbeat.",
            ("worker",),
        ),
        Metric("pipeline_progress_ratio", "gauge", "Fraction of the planned shards that are committed, 0 to 1."),
        Metric("pipeline_planning_progress_ratio", "gauge", "Fraction of the videos that are planned, 0 to 1."),
        Metric("disk_free_bytes", "gauge", "Free bytes of the disk that holds the run folder, or the folder of shards."),
        Metric("disk_free_ratio", "gauge", "Free fraction of that disk, 0 to 1."),
        Metric("train_steps", "gauge", "Steps of the whole curriculum."),
        Metric("train_eta_seconds", "gauge", "Seconds that the remaining steps will take at the pace of the last ones."),
        Metric("train_validation_loss", "gauge", "Loss on held-out shards, in nats per bit.", ("bucket",)),
        Metric(
            "train_rank_step_seconds",
            "gauge",
            "Duration of a rank's last step; of more than 64 ranks, the 16 longest.",
            ("rank",),
        ),
        Metric(
            "train_rank_data_seconds",
            "gauge",
            "Seconds of its last step that a rank waited for its own data; of more than 64 ranks, the 16 longest.",
            ("rank",),
        ),
        Metric(
            "train_rank_resident_bytes", "gauge", "Main memory of a rank; of more than 64 ranks, the 16 largest.", ("rank",)
        ),
        Metric(
            "train_rank_device_bytes", "gauge", "Device memory of a rank; of more than 64 ranks, the 16 largest.", ("rank",)
        ),
        Metric("train_step", "gauge", "Last completed optimizer step."),
        Metric("train_stage", "gauge", "Index of the curriculum stage, from 0."),
        Metric("train_loss", "gauge", "Loss of the last step, in nats per bit."),
        Metric("train_scale_loss", "gauge", "Loss at one scale, in nats per bit.", ("scale",)),
        Metric("train_bit_accuracy_ratio", "gauge", "Fraction of bits predicted correctly at one scale, 0 to 1.", ("scale",)),
        Metric("train_grad_norm", "gauge", "Gradient norm before clipping."),
        Metric("train_learning_rate", "gauge", "Learning rate of the last step."),
        Metric("train_tokens_total", "counter", "Tokens trained on, text and video, over all ranks."),
        Metric("train_tokens_per_second", "gauge", "Tokens per second, over all ranks."),
        Metric("train_mfu_ratio", "gauge", "Model FLOPs utilization: model FLOPs per second over the device's peak, 0 to 1."),
        Metric(
            "train_padding_ratio",
            "gauge",
            "Fraction of computed positions that are padding or fill samples, in the last step, 0 to 1.",
        ),
        Metric(
            "train_compilations_total", "counter", "Functions compiled during steps, over all ranks; 0 once a stage is warm."
        ),
        Metric("train_phase_seconds", "gauge", "Duration of one phase of the last step, in seconds.", ("phase",)),
        Metric("train_data_wait_seconds_total", "counter", "Seconds that steps spent waiting for data."),
        Metric(
            "train_skipped_steps_total",
            "counter",
            "Steps whose weight update was skipped, by reason.",
            ("reason",),
            ("nonfinite_loss", "nonfinite_gradient", "loss_spike"),
        ),
        Metric("train_corrupt_samples_total", "counter", "Samples that failed their checksum and were replaced."),
        Metric("train_last_step_timestamp_seconds", "gauge", "Unix time of the last step; of the start, before the first one."),
        Metric(
            "train_heartbeat_timestamp_seconds",
            "gauge",
            "Unix time of a rank's own heartbeat; of more than 64 ranks, only the 16 that were silent for longest.",
            ("rank",),
        ),
        Metric("train_checkpoint_seconds", "gauge", "Seconds that the last checkpoint blocked training."),
        Metric(
            "train_checkpoint_last_success_timestamp_seconds",
            "gauge",
            "Unix time of the newest complete checkpoint; of the start, before the first one.",
        ),
        Metric("train_memory_bytes", "gauge", "Memory in use, by kind: resident, peak, device.", ("kind",)),
        Metric(
            "train_aside_failures_total",
            "counter",
            "Failures of what is not the step (samples, validation, reports), after which training went on.",
            ("what",),
            (
                "samples",
                "validation",
                "metrics.jsonl",
                "validation.jsonl",
                "skipped.jsonl",
                "log",
                "status.json",
                "stop",
                "tensorboard",
            ),
        ),
        Metric("train_restarts_total", "counter", "Restarts of the job from a checkpoint."),
        Metric("tokenizer_step", "gauge", "Last completed step of tokenizer training."),
        Metric("tokenizer_loss", "gauge", "Weighted sum of the generator's loss terms in the last step."),
        Metric("tokenizer_term", "gauge", "One unweighted loss term in the last step.", ("term",)),
        Metric("tokenizer_psnr_db", "gauge", "PSNR of the last step's reconstructions, in dB."),
        Metric(
            "tokenizer_bit_entropy_bits",
            "gauge",
            "Entropy of the mean bit at one scale: 1 when both values are equally likely, 0 when the bits are constant.",
            ("scale",),
        ),
        Metric("tokenizer_grad_norm", "gauge", "Gradient norm of the generator before clipping."),
        Metric("tokenizer_learning_rate", "gauge", "Learning rate of the generator."),
        Metric("tokenizer_clips_total", "counter", "Clips trained on since the last start, over all ranks."),
        Metric("tokenizer_phase_seconds", "gauge", "Duration of one phase of the last step, in seconds.", ("phase",)),
        Metric("tokenizer_data_wait_seconds_total", "counter", "Seconds that steps spent waiting for decoded clips."),
        Metric("tokenizer_heartbeat_timestamp_seconds", "gauge", "Unix time of the last step."),
    )
}
