"""The alerts, with texts and what to do first; recording rules; Alertmanager's routes.

Queries are of declared metrics (`dashboards.py` checks that).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
        "VideoarRankStarved",
        "videoar_train_rank_data_seconds > on (run) group_left () 0.5 * max by (run) (videoar_train_rank_step_seconds)",
        "10m",
        "ticket",
        "Rank {{ $labels.rank }} of {{ $labels.run }} waits for its data for half of each step, and all others wait for it.",
        "Look at the disk and the CPU of that rank's host (RUN/heartbeats/rank-N names it).",
    ),
    Alert(
        "VideoarNoProgress",
        "max by (run) (max_over_time(videoar_train_step[30m])) <= max by (run) (max_over_time(videoar_train_step[30m] offset 2h))",
        "10m",
        "page",
        "{{ $labels.run }} is no further than two hours ago.",
        "It trains the same steps again after each restart: read what ended the last starts, and lower train.checkpoint_every.",
    ),
    Alert(
        "VideoarLossSpike",
        "videoar_train_loss > 1.3 * quantile_over_time(0.5, videoar_train_loss[30m])",
        "2m",
        "ticket",
        "The loss of {{ $labels.run }} has been 30 % above its median of half an hour for 2 minutes.",
        "Compare gradient norm and samples of those steps in metrics.jsonl; go back to the checkpoint before it, or lower the rate.",
    ),
    Alert(
        "VideoarDiskFilling",
        "videoar_disk_free_ratio < 0.03"
        " or videoar_disk_free_ratio < 0.25 and on (run, instance) predict_linear(videoar_disk_free_bytes[1h], 4 * 3600) < 0",
        "5m",
        "page",
        "The disk of {{ $labels.run }} is nearly full, or will be within 4 hours.",
        "Free space or lower train.keep_checkpoints; the job waits and writes its next checkpoint once there is room.",
    ),
    Alert(
        "VideoarLossNotANumber",
        "videoar_train_loss != videoar_train_loss"
        ' or on (run, instance) sum by (run, instance) (increase(videoar_train_skipped_steps_total{reason=~"nonfinite_.*"}[10m])) > 2',
        "0m",
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
        "run:videoar_train_data_wait:ratio15m > 0.2",
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
        "VideoarPlanningStalled",
        "videoar_pipeline_planning_progress_ratio < 1 and delta(videoar_pipeline_planning_progress_ratio[1h]) == 0",
        "10m",
        "page",
        "{{ $labels.run }} has planned no video for an hour.",
        "Read the job's log; a part that hangs is started again after pipeline.stall_seconds, and names its video.",
    ),
    Alert(
        "VideoarClipsRefused",
        "run:videoar_pipeline_clips_refused:ratio1h > 0.5",
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
        "VideoarJobDead",
        'up{job="videoar"} == 0',
        "5m",
        "page",
        "{{ $labels.run }} has not answered at {{ $labels.instance }} for 5 minutes, and did not end well.",
        "Run the same command again: it continues. A job that shall stay dead: remove its file from the folder of targets.",
    ),
    Alert(
        "VideoarGpuFault",
        "changes(DCGM_FI_DEV_XID_ERRORS[10m]) > 0 and DCGM_FI_DEV_XID_ERRORS > 0",
        "0m",
        "ticket",
        "GPU {{ $labels.gpu }} of {{ $labels.instance }} reported the fault Xid {{ $value }}.",
        "Look the number up in NVIDIA's list of Xids; drain the host if it comes again.",
    ),
)

RECORDED = {
    "run:videoar_train_tokens:rate5m": "sum by (run) (rate(videoar_train_tokens_total[5m]))",
    "run:videoar_train_data_wait:ratio15m": "max by (run) (rate(videoar_train_data_wait_seconds_total[15m]))",
    "run:videoar_pipeline_frames:rate5m": "sum by (run) (rate(videoar_pipeline_frames_total[5m]))",
    "run:videoar_pipeline_clips_refused:ratio1h": 'sum by (run) (increase(videoar_pipeline_clips_total{outcome="refused"}[1h]))'
    " / (sum by (run) (increase(videoar_pipeline_clips_total[1h])) > 0)",
}
"""Recording rules: what dashboards over weeks, and alerts, ask for again and again."""


def alertmanager(page_url: str, ticket_url: str) -> dict[str, Any]:
    """Return the content of alertmanager.yml: pages at once and again each hour, tickets once a day; a dead job says nothing else.

    page_url, ticket_url: webhooks that take Alertmanager's JSON.
    """
    return {
        "route": {
            "receiver": "ticket",
            "group_by": ["alertname", "run"],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "24h",
            "routes": [{"receiver": "page", "matchers": ['severity="page"'], "group_wait": "5s", "repeat_interval": "1h"}],
        },
        "inhibit_rules": [
            {
                "source_matchers": ['alertname="VideoarJobDead"'],
                "target_matchers": ['alertname!="VideoarJobDead"', 'run!=""'],
                "equal": ["run"],
            }
        ],
        "receivers": [
            {"name": "page", "webhook_configs": [{"url": page_url, "send_resolved": True}]},
            {"name": "ticket", "webhook_configs": [{"url": ticket_url, "send_resolved": True}]},
        ],
    }
