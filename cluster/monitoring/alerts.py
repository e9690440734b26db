"""When the alerts ring: queries over the declared metrics, and nothing else.

Out: `ALERTS`, plain declarations.
Called by: `cluster/monitoring/dashboards.py`, which checks that every query names declared metrics only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alert:
    """One alert: it rings when `query` has had a result for `lasting`."""

    name: str
    query: str
    lasting: str
    severity: str
    """page (someone gets up) or ticket (next working day)."""
    summary: str
    mend: str
    """What to do first."""


ALERTS = (
    Alert(
        "VideoarTrainingStalled",
        "time() - max by (run) (videoar_train_heartbeat_timestamp_seconds) > 600",
        "2m",
        "page",
        "No rank of {{ $labels.run }} has finished a step for 10 minutes.",
        "Look at RUN/log/rank-*.log; `videoar launch` starts the job again from its newest checkpoint.",
    ),
    Alert(
        "VideoarRankBehind",
        "max by (run) (videoar_train_heartbeat_timestamp_seconds) - on (run) group_right ()"
        " videoar_train_heartbeat_timestamp_seconds > 120",
        "5m",
        "page",
        "Rank {{ $labels.rank }} of {{ $labels.run }} is 2 minutes behind the others.",
        "Look at the host of that rank: throttled device, full disk, broken link.",
    ),
    Alert(
        "VideoarLossNotANumber",
        "videoar_train_loss != videoar_train_loss",
        "1m",
        "page",
        "The loss of {{ $labels.run }} is not a number.",
        "The job skips such steps and stops after train.max_skips of them; find the first one in metrics.jsonl.",
    ),
    Alert(
        "VideoarStepsSkipped",
        "sum by (run) (increase(videoar_train_skipped_steps_total[30m])) > 3",
        "1m",
        "ticket",
        "{{ $labels.run }} skipped more than 3 steps in half an hour.",
        "metrics.jsonl names the reason and the sample ids of each skipped step.",
    ),
    Alert(
        "VideoarSamplesCorrupt",
        "sum by (run) (increase(videoar_train_corrupt_samples_total[1h])) > 0",
        "1m",
        "ticket",
        "{{ $labels.run }} read samples that do not match their checksum.",
        "Run `videoar shards verify` on the shards; a disk may be failing.",
    ),
    Alert(
        "VideoarRestarts",
        "increase(videoar_train_restarts_total[6h]) > 2 or videoar_train_restarts_total > 5",
        "1m",
        "ticket",
        "{{ $labels.run }} keeps failing and starting again.",
        "The end of each failed start stands in the log before the line `[launch] exit code`.",
    ),
    Alert(
        "VideoarCheckpointOld",
        "time() - videoar_train_checkpoint_last_success_timestamp_seconds > 4 * 3600",
        "5m",
        "ticket",
        "The newest whole checkpoint of {{ $labels.run }} is 4 hours old.",
        "Look for a full disk under RUN/checkpoints; set train.checkpoint_every lower.",
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
        "Tokenizer training of {{ $labels.run }} has finished no step for 10 minutes.",
        "Look at the end of its log; the same command goes on from its newest checkpoint.",
    ),
    Alert(
        "VideoarTokenizationStalled",
        "videoar_pipeline_progress_ratio < 1 and on (run) sum by (run) (increase(videoar_pipeline_frames_total[30m])) == 0",
        "10m",
        "page",
        "{{ $labels.run }} has encoded nothing for half an hour.",
        "`ray job logs` of the job; run the same command again, finished shards are kept.",
    ),
    Alert(
        "VideoarClipsRefused",
        'sum by (run) (increase(videoar_pipeline_clips_total{outcome="refused"}[1h]))'
        " > 0.5 * sum by (run) (increase(videoar_pipeline_clips_total[1h]))",
        "15m",
        "ticket",
        "More than half of the clips of {{ $labels.run }} were refused in the last hour.",
        "`videoar shards stat` counts them by reason; a filter may be too strict for this source.",
    ),
    Alert(
        "VideoarTokenizationKeepsDying",
        "sum by (run) (increase(videoar_pipeline_retries_total[1h])) > 10",
        "1m",
        "ticket",
        "Workers of {{ $labels.run }} died more than 10 times in the last hour.",
        "The job's log names each death; look at memory limits of the workers and at the host they share.",
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
