"""What the dashboards show: queries over the declared metrics, and nothing else. When alerts ring stands in `alerts.py`.

Out: `DASHBOARDS`, plain declarations.
Called by: `cluster/monitoring/dashboards.py`, which checks that every query names declared metrics only.

`$run` is the chosen run; queries are over raw metrics, so no recording rules have to run first.
"""

from __future__ import annotations

from dataclasses import dataclass

RUN = 'run=~"$run"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One panel: a title, what it tells, and queries with their legends."""

    title: str
    tells: str
    """One sentence for whoever looks at it at three in the morning."""
    queries: tuple[tuple[str, str], ...]
    """PromQL and legend."""
    unit: str = "short"
    """Grafana's name of the unit."""
    kind: str = "timeseries"
    """timeseries or stat."""
    width: int = 12
    """Of 24 columns."""
    log: bool = False
    """Logarithmic axis."""


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; `name` is its file and uid."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def _stat(title: str, query: str, tells: str, unit: str = "short") -> Panel:
    return Panel(title, tells, ((query, ""),), unit, "stat", 4)


TRAINING = Dashboard(
    "videoar-training",
    "VideoAR training",
    (
        _stat("step", f"videoar_train_step{{{RUN}}}", "Last finished optimizer step."),
        _stat("stage", f"videoar_train_stage{{{RUN}}}", "Curriculum stage, counted from 0."),
        _stat("loss", f"videoar_train_loss{{{RUN}}}", "Loss of the last step, nats a bit; untrained is 0.693."),
        _stat("tokens", f"videoar_train_tokens_total{{{RUN}}}", "Positions trained on since the last start."),
        _stat("restarts", f"videoar_train_restarts_total{{{RUN}}}", "Starts after a failure; look at the log of the last one."),
        _stat(
            "since the last step",
            f"time() - max(videoar_train_heartbeat_timestamp_seconds{{{RUN}}})",
            "Far more than a step takes: the job hangs.",
            "s",
        ),
        Panel("loss", "Falls; jumps at a new stage.", ((f"videoar_train_loss{{{RUN}}}", "{{run}}"),)),
        Panel(
            "loss by scale",
            "Coarse scales settle first; one that rises alone points at its corruption or weight.",
            ((f"videoar_train_scale_loss{{{RUN}}}", "{{scale}}"),),
        ),
        Panel(
            "bit accuracy by scale",
            "Starts at one half; the finest scale is the last to leave it.",
            ((f"videoar_train_bit_accuracy_ratio{{{RUN}}}", "{{scale}}"),),
            "percentunit",
        ),
        Panel(
            "gradient norm",
            "Before clipping; a climb over many steps precedes a spike.",
            ((f"videoar_train_grad_norm{{{RUN}}}", "{{run}}"),),
            log=True,
        ),
        Panel("learning rate", "As the schedule says.", ((f"videoar_train_learning_rate{{{RUN}}}", "{{run}}"),), "sci"),
        Panel(
            "throughput",
            "Positions a second over all ranks.",
            ((f"videoar_train_tokens_per_second{{{RUN}}}", "{{run}}"),),
        ),
        Panel(
            "share of the device's peak",
            "Model FLOPs; absent on a device whose peak is not known.",
            ((f"videoar_train_mfu_ratio{{{RUN}}}", "{{run}}"),),
            "percentunit",
        ),
        Panel(
            "seconds of a step by phase",
            "Which part of a step grew.",
            ((f"videoar_train_phase_seconds{{{RUN}}}", "{{phase}}"),),
            "s",
        ),
        Panel(
            "share of time waiting for data",
            "Above a few percent the loader is the limit: more prefetch, faster disks.",
            ((f"rate(videoar_train_data_wait_seconds_total{{{RUN}}}{RATE})", "{{run}}"),),
            "percentunit",
        ),
        Panel(
            "skipped steps and replaced samples",
            "Steps that changed no weight, by reason; samples whose checksum was wrong.",
            (
                (f"increase(videoar_train_skipped_steps_total{{{RUN}}}{RATE})", "skipped: {{reason}}"),
                (f"increase(videoar_train_corrupt_samples_total{{{RUN}}}{RATE})", "corrupt samples"),
            ),
        ),
        Panel("memory", "By kind.", ((f"videoar_train_memory_bytes{{{RUN}}}", "{{kind}}"),), "bytes"),
        Panel(
            "checkpoints",
            "How long one holds up training, and how much work a crash would cost now.",
            (
                (f"videoar_train_checkpoint_seconds{{{RUN}}}", "seconds of the last one"),
                (f"time() - videoar_train_checkpoint_last_success_timestamp_seconds{{{RUN}}}", "age of the newest"),
            ),
            "s",
        ),
        Panel(
            "seconds since each rank's last step",
            "One rank far above the others is the slow or dead one.",
            ((f"time() - videoar_train_heartbeat_timestamp_seconds{{{RUN}}}", "rank {{rank}}"),),
            "s",
        ),
    ),
)

TOKENIZATION = Dashboard(
    "videoar-tokenization",
    "VideoAR tokenization",
    (
        _stat("done", f"videoar_pipeline_progress_ratio{{{RUN}}}", "Planned shards that are committed.", "percentunit"),
        _stat("shards", f"sum(videoar_pipeline_shards_committed_total{{{RUN}}})", "Committed so far."),
        _stat("frames", f"sum(videoar_pipeline_frames_total{{{RUN}}})", "Pixel frames encoded so far."),
        _stat("tokens", f"sum(videoar_pipeline_tokens_total{{{RUN}}})", "Positions written so far."),
        _stat(
            "refused clips",
            f'sum(videoar_pipeline_clips_total{{{RUN},outcome="refused"}}) / sum(videoar_pipeline_clips_total{{{RUN}}})',
            "Share of clips with an outcome; the reasons are in rejects.parquet.",
            "percentunit",
        ),
        _stat(
            "refused videos",
            f'sum(videoar_pipeline_videos_total{{{RUN},outcome="refused"}}) / sum(videoar_pipeline_videos_total{{{RUN}}})',
            "Share of videos with an outcome.",
            "percentunit",
        ),
        Panel("progress", "Straight is healthy.", ((f"videoar_pipeline_progress_ratio{{{RUN}}}", "{{run}}"),), "percentunit"),
        Panel(
            "frames a second",
            "Over all workers.",
            ((f"sum by (run) (rate(videoar_pipeline_frames_total{{{RUN}}}{RATE}))", "{{run}}"),),
        ),
        Panel(
            "tokens a second",
            "Over all workers.",
            ((f"sum by (run) (rate(videoar_pipeline_tokens_total{{{RUN}}}{RATE}))", "{{run}}"),),
        ),
        Panel(
            "clips a second by outcome",
            "Refusals that start at one moment point at a bad source folder.",
            ((f"sum by (outcome, reason) (rate(videoar_pipeline_clips_total{{{RUN}}}{RATE}))", "{{outcome}} {{reason}}"),),
        ),
        Panel(
            "seconds of a unit of work by stage, 95 in 100 below",
            "The stage that grows is the one to look at.",
            (
                (
                    f"histogram_quantile(0.95, sum by (stage, le) (rate(videoar_pipeline_stage_seconds_bucket{{{RUN}}}{RATE})))",
                    "{{stage}}",
                ),
            ),
            "s",
        ),
        Panel(
            "share of a worker's time by stage",
            "What the workers do; waiting for decoded frames means decoding is the limit.",
            ((f"sum by (stage) (rate(videoar_pipeline_stage_seconds_sum{{{RUN}}}{RATE}))", "{{stage}}"),),
            "percentunit",
        ),
        Panel(
            "deaths",
            "Work given to another worker after a death, and decoders that died: a few are odd files, many are a sick host.",
            (
                (f"sum by (stage) (increase(videoar_pipeline_retries_total{{{RUN}}}{RATE}))", "{{stage}}: given again"),
                (f"sum by (stage) (increase(videoar_pipeline_decoder_deaths_total{{{RUN}}}{RATE}))", "{{stage}}: decoders"),
            ),
        ),
        Panel(
            "videos that the decoding card left to the CPU",
            "By codec, where pipeline.decode_device is a card; all of them means that its decoder library is missing.",
            (
                (
                    f"sum by (stage, codec) (increase(videoar_pipeline_software_decodes_total{{{RUN}}}{RATE}))",
                    "{{stage}}: {{codec}}",
                ),
            ),
        ),
        Panel(
            "seconds since each worker's last sign",
            "Signs come every few seconds; one worker far above the others sits on a dead or frozen host.",
            ((f"time() - videoar_pipeline_worker_heartbeat_timestamp_seconds{{{RUN}}}", "worker {{worker}}"),),
            "s",
        ),
    ),
)

TOKENIZER = Dashboard(
    "videoar-tokenizer",
    "VideoAR tokenizer training",
    (
        _stat("step", f"videoar_tokenizer_step{{{RUN}}}", "Last finished step."),
        _stat("PSNR", f"videoar_tokenizer_psnr_db{{{RUN}}}", "Of the last step's reconstructions, dB.", "dB"),
        _stat("clips", f"videoar_tokenizer_clips_total{{{RUN}}}", "Trained on since the last start."),
        _stat(
            "since the last step",
            f"time() - max(videoar_tokenizer_heartbeat_timestamp_seconds{{{RUN}}})",
            "Far more than a step takes: the job hangs.",
            "s",
        ),
        Panel("loss", "Falls; jumps when the adversary starts.", ((f"videoar_tokenizer_loss{{{RUN}}}", "{{run}}"),)),
        Panel(
            "terms",
            "Before their weights. A discriminator near 0 has won: the reconstructions stop to follow it.",
            ((f"videoar_tokenizer_term{{{RUN}}}", "{{term}}"),),
        ),
        Panel("PSNR", "Of the training clips, dB.", ((f"videoar_tokenizer_psnr_db{{{RUN}}}", "{{run}}"),), "dB"),
        Panel(
            "entropy of the bits by scale",
            "Near 1 is healthy; a scale that sinks towards 0 carries nothing.",
            ((f"videoar_tokenizer_bit_entropy_bits{{{RUN}}}", "{{scale}}"),),
        ),
        Panel(
            "gradient norm",
            "Before clipping; a climb over many steps precedes a spike.",
            ((f"videoar_tokenizer_grad_norm{{{RUN}}}", "{{run}}"),),
            log=True,
        ),
        Panel("learning rate", "As the schedule says.", ((f"videoar_tokenizer_learning_rate{{{RUN}}}", "{{run}}"),), "sci"),
        Panel(
            "seconds of a step by phase",
            "Which part of a step grew.",
            ((f"videoar_tokenizer_phase_seconds{{{RUN}}}", "{{phase}}"),),
            "s",
        ),
        Panel(
            "share of time waiting for clips",
            "Above a few percent decoding is the limit: more tokenizer.training.workers.",
            ((f"rate(videoar_tokenizer_data_wait_seconds_total{{{RUN}}}{RATE})", "{{run}}"),),
            "percentunit",
        ),
    ),
)

DASHBOARDS = (TRAINING, TOKENIZATION, TOKENIZER)
