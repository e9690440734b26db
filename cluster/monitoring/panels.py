"""The dashboards of tokenization and tokenizer training, as declarations: panels and their queries of declared metrics (`dashboards.py` checks that).

`$run` is the one run that is selected in Grafana. Training has its panels in train_panels.py, hosts and GPUs in host_panels.py.
"""

from __future__ import annotations

from dataclasses import dataclass

RUN = 'run=~"$run"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One panel: a title, a description, and queries with their legends."""

    title: str
    description: str
    """One sentence for whoever is paged at three in the morning."""
    queries: tuple[tuple[str, str], ...]
    """PromQL and legend."""
    unit: str = "short"
    """Unit, by Grafana's name for it."""
    kind: str = "timeseries"
    """timeseries or stat."""
    width: int = 12
    """Columns, of 24."""
    log: bool = False
    """Logarithmic axis."""


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; `name` is its file name and uid."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    variable: str = "run"
    """What is selected: a run, or hosts (instance)."""


def stat(title: str, query: str, description: str, unit: str = "short") -> Panel:
    """Return a panel of one number."""
    return Panel(title, description, ((query, ""),), unit, "stat", 4)


TOKENIZATION = Dashboard(
    "videoar-tokenization",
    "VideoAR tokenization",
    (
        stat(
            "done",
            f"videoar_pipeline_progress_ratio{{{RUN}}}",
            "Fraction of the planned shards that are committed.",
            "percentunit",
        ),
        stat("shards", f"sum(videoar_pipeline_shards_committed_total{{{RUN}}})", "Committed so far."),
        stat("frames", f"sum(videoar_pipeline_frames_total{{{RUN}}})", "Pixel frames encoded so far."),
        stat("tokens", f"sum(videoar_pipeline_tokens_total{{{RUN}}})", "Tokens written so far."),
        stat("planned", f"videoar_pipeline_planning_progress_ratio{{{RUN}}}", "Fraction of the videos planned.", "percentunit"),
        stat("disk free", f"videoar_disk_free_ratio{{{RUN}}}", "Of the disk that holds the shards.", "percentunit"),
        stat(
            "rejected clips",
            f'sum(videoar_pipeline_clips_total{{{RUN},outcome="refused"}}) / sum(videoar_pipeline_clips_total{{{RUN}}})',
            "Fraction of processed clips that were rejected; the reasons are in the table of rejects.",
            "percentunit",
        ),
        stat(
            "rejected videos",
            f'sum(videoar_pipeline_videos_total{{{RUN},outcome="refused"}}) / sum(videoar_pipeline_videos_total{{{RUN}}})',
            "Fraction of processed videos that were rejected.",
            "percentunit",
        ),
        Panel(
            "progress",
            "A straight line is healthy.",
            ((f"videoar_pipeline_progress_ratio{{{RUN}}}", "{{run}}"),),
            "percentunit",
        ),
        Panel(
            "frames per second",
            "Over all workers, in the last five minutes.",
            ((f"run:videoar_pipeline_frames:rate5m{{{RUN}}}", "{{run}}"),),
        ),
        Panel(
            "tokens per second",
            "Over all workers.",
            ((f"sum by (run) (rate(videoar_pipeline_tokens_total{{{RUN}}}{RATE}))", "{{run}}"),),
        ),
        Panel(
            "clips per second, by outcome",
            "A sudden rise of rejections points to a bad source folder.",
            ((f"sum by (outcome, reason) (rate(videoar_pipeline_clips_total{{{RUN}}}{RATE}))", "{{outcome}} {{reason}}"),),
        ),
        Panel(
            "seconds per unit of work by stage, 95th percentile",
            "A stage that grows is the one to investigate.",
            (
                (
                    f"histogram_quantile(0.95, sum by (stage, le) (rate(videoar_pipeline_stage_seconds_bucket{{{RUN}}}{RATE})))",
                    "{{stage}}",
                ),
            ),
            "s",
        ),
        Panel(
            "time of the workers, by stage",
            "What the workers spend their time on; much waiting for decoded frames means that decoding is the bottleneck.",
            ((f"sum by (stage) (rate(videoar_pipeline_stage_seconds_sum{{{RUN}}}{RATE}))", "{{stage}}"),),
            "percentunit",
        ),
        Panel(
            "share of clips refused, last hour",
            "Above a half, a filter is too strict for this source.",
            ((f"run:videoar_pipeline_clips_refused:ratio1h{{{RUN}}}", "{{run}}"),),
            "percentunit",
        ),
        Panel(
            "deaths",
            "Work reassigned from dead workers, and decoders that died: a few are due to odd files, many to a sick host.",
            (
                (f"sum by (stage) (increase(videoar_pipeline_retries_total{{{RUN}}}{RATE}))", "{{stage}}: reassigned"),
                (f"sum by (stage) (increase(videoar_pipeline_decoder_deaths_total{{{RUN}}}{RATE}))", "{{stage}}: decoders"),
            ),
        ),
        Panel(
            "videos that the GPU decoder left to the CPU",
            "By codec, with pipeline.decode_device on a GPU; if it is every video, the GPU's decoder library is missing.",
            (
                (
                    f"sum by (stage, codec) (increase(videoar_pipeline_software_decodes_total{{{RUN}}}{RATE}))",
                    "{{stage}}: {{codec}}",
                ),
            ),
        ),
        Panel(
            "seconds since each worker's last heartbeat",
            "Heartbeats come every few seconds; a worker far above the others is on a dead or frozen host.",
            ((f"time() - videoar_pipeline_worker_heartbeat_timestamp_seconds{{{RUN}}}", "worker {{worker}}"),),
            "s",
        ),
    ),
)

TOKENIZER = Dashboard(
    "videoar-tokenizer",
    "VideoAR tokenizer training",
    (
        stat("step", f"videoar_tokenizer_step{{{RUN}}}", "Last completed step."),
        stat("PSNR", f"videoar_tokenizer_psnr_db{{{RUN}}}", "PSNR of the last step's reconstructions.", "dB"),
        stat("clips", f"videoar_tokenizer_clips_total{{{RUN}}}", "Clips trained on since the last start."),
        stat(
            "since the last step",
            f"time() - max(videoar_tokenizer_heartbeat_timestamp_seconds{{{RUN}}})",
            "If this is much longer than a step, the job hangs.",
            "s",
        ),
        Panel("loss", "Should fall; jumps when the discriminator starts.", ((f"videoar_tokenizer_loss{{{RUN}}}", "{{run}}"),)),
        Panel(
            "loss terms",
            "Unweighted. A discriminator loss near 0 means that it has won, and no longer improves the reconstructions.",
            ((f"videoar_tokenizer_term{{{RUN}}}", "{{term}}"),),
        ),
        Panel("PSNR", "On the training clips.", ((f"videoar_tokenizer_psnr_db{{{RUN}}}", "{{run}}"),), "dB"),
        Panel(
            "entropy of the bits, by scale",
            "Near 1 is healthy; a scale that falls towards 0 carries no information.",
            ((f"videoar_tokenizer_bit_entropy_bits{{{RUN}}}", "{{scale}}"),),
        ),
        Panel(
            "gradient norm",
            "Before clipping; a slow rise over many steps precedes a spike.",
            ((f"videoar_tokenizer_grad_norm{{{RUN}}}", "{{run}}"),),
            log=True,
        ),
        Panel("learning rate", "Follows the schedule.", ((f"videoar_tokenizer_learning_rate{{{RUN}}}", "{{run}}"),), "sci"),
        Panel(
            "seconds per step, by phase",
            "Shows which part of a step became slower.",
            ((f"videoar_tokenizer_phase_seconds{{{RUN}}}", "{{phase}}"),),
            "s",
        ),
        Panel(
            "fraction of time spent waiting for clips",
            "Above a few percent, decoding is the bottleneck: raise tokenizer.training.workers.",
            ((f"rate(videoar_tokenizer_data_wait_seconds_total{{{RUN}}}{RATE})", "{{run}}"),),
            "percentunit",
        ),
    ),
)
