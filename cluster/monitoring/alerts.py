"""The alerts, as declarations: queries of declared metrics (`dashboards.py` checks that), texts, and what to do first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alert:
    """One alert: it fires when `query` has returned a result for `duration`."""

    name: str
    query: str
    duration: str
    severity: str
    """page (wakes someone up) or ticket (next working day)."""
    summary: str
    fix: str
    """What to do first."""


ALERTS = (
    Alert(
        "VideoarTrainingStalled",
        "time() - max by (run) (videoar_train_last_step_timestamp_seconds) > 600",
        "2m",
        "page",
        "No rank of {{ $labels.run }} has finished a step for 10 minutes.",
        "Read RUN/log/rank-*.log; `videoar launch` restarts the job from its newest checkpoint.",
    ),
    Alert(
        "VideoarRankBehind",
        "max by (run) (videoar_train_heartbeat_timestamp_seconds) - on (run) group_right ()"
        " videoar_train_heartbeat_timestamp_seconds > 120",
        "5m",
        "page",
        "Rank {{ $labels.rank }} of {{ $labels.run }} has been silent for 2 minutes longer than the others.",
        "Check that rank's host: throttled device, full disk, broken network link.",
    ),
    Alert(
        "VideoarLossNotANumber",
        "videoar_train_loss != videoar_train_loss",
        "1m",
        "page",
        "The loss of {{ $labels.run }} is NaN.",
        "The job skips such steps and stops after train.max_skips in a row; find the first one in metrics.jsonl.",
    ),
    Alert(
        "VideoarStepsSkipped",
        "sum by (run) (increase(videoar_train_skipped_steps_total[30m])) > 3",
        "1m",
        "ticket",
        "{{ $labels.run }} skipped more than 3 steps in half an hour.",
        "metrics.jsonl has the reason and the sample ids of each skipped step.",
    ),
    Alert(
        "VideoarSamplesCorrupt",
        "sum by (run) (increase(videoar_train_corrupt_samples_total[1h])) > 0",
        "1m",
        "ticket",
        "{{ $labels.run }} read samples that failed their checksum.",
        "Run `videoar shards verify` on the shards; a disk may be failing.",
    ),
    Alert(
        "VideoarFailuresAside",
        "sum by (run, what) (increase(videoar_train_aside_failures_total[1h])) > 0",
        "1m",
        "ticket",
        "{{ $labels.run }} trains on, but {{ $labels.what }} failed.",
        "RUN/log/rank-0.log has the reason (`training goes on`); most often the disk of the run folder is full.",
    ),
    Alert(
        "VideoarRestarts",
        "increase(videoar_train_restarts_total[6h]) > 2 or videoar_train_restarts_total > 5",
        "1m",
        "ticket",
        "{{ $labels.run }} keeps failing and being restarted.",
        "The output of each failed start ends before the line `[launch] exit code` in the log.",
    ),
    Alert(
        "VideoarCheckpointOld",
        "time() - videoar_train_checkpoint_last_success_timestamp_seconds > 4 * 3600",
        "5m",
        "ticket",
        "The newest complete checkpoint of {{ $labels.run }} is 4 hours old.",
        "Check the disk of RUN/checkpoints for free space; lower train.checkpoint_every.",
    ),
    Alert(
        "VideoarWaitsForData",
        "rate(videoar_train_data_wait_seconds_total[15m]) > 0.2",
        "15m",
        "ticket",
        "{{ $labels.run }} spends more than a fifth of its time waiting for data.",
        "Raise train.prefetch, or move the shards to a faster disk.",
    ),
    Alert(
        "VideoarTokenizerStalled",
        "time() - max by (run) (videoar_tokenizer_heartbeat_timestamp_seconds) > 600",
        "2m",
        "page",
        "Tokenizer training of {{ $labels.run }} has not finished a step for 10 minutes.",
        "Read the end of its log; the same command continues from the newest checkpoint.",
    ),
    Alert(
        "VideoarTokenizationStalled",
        "videoar_pipeline_progress_ratio < 1 and on (run) sum by (run) (increase(videoar_pipeline_frames_total[30m])) == 0",
        "10m",
        "page",
        "{{ $labels.run }} has encoded nothing for half an hour.",
        "Read `ray job logs` of the job; running the same command again keeps finished shards.",
    ),
    Alert(
        "VideoarClipsRefused",
        'sum by (run) (increase(videoar_pipeline_clips_total{outcome="refused"}[1h]))'
        " > 0.5 * sum by (run) (increase(videoar_pipeline_clips_total[1h]))",
        "15m",
        "ticket",
        "More than half of the clips of {{ $labels.run }} were rejected in the last hour.",
        "`videoar shards stat` counts them by reason; a filter may be too strict for this source.",
    ),
    Alert(
        "VideoarTokenizationKeepsDying",
        "sum by (run) (increase(videoar_pipeline_retries_total[1h])) > 10",
        "1m",
        "ticket",
        "Workers of {{ $labels.run }} died more than 10 times in the last hour.",
        "The job's log names each dead worker; check the workers' memory limits and the host they share.",
    ),
    Alert(
        "VideoarNotScraped",
        'up{job="videoar"} == 0',
        "5m",
        "ticket",
        "{{ $labels.run }} does not answer at {{ $labels.instance }}.",
        "The job has ended, or its address has changed: run `videoar dashboards` again with the run folder.",
    ),
)
