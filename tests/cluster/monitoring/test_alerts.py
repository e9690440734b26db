"""Each alert rings for what it is for and is silent for what it is not, by promtool's own evaluation of the written rules."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.monitoring.alerts import ALERTS
from cluster.monitoring.dashboards import write
from tests.helpers.prometheus import program

T = 'run="a",job="videoar",instance="h:1"'
Case = tuple[dict[str, str], str]
"""Series in promtool's notation, a sample a minute, and when to look."""
CASES: dict[str, tuple[Case, Case]] = {  # rings, is silent
    "VideoarTrainingStalled": (
        ({f"videoar_train_last_step_timestamp_seconds{{{T}}}": "0x30"}, "15m"),  # the start: a hang before step 1
        ({f"videoar_train_last_step_timestamp_seconds{{{T}}}": "0+60x30"}, "15m"),
    ),
    "VideoarRankBehind": (
        (
            {
                f'videoar_train_heartbeat_timestamp_seconds{{{T},rank="0"}}': "0+60x30",
                f'videoar_train_heartbeat_timestamp_seconds{{{T},rank="1"}}': "0+60x5 300x25",
            },
            "20m",
        ),
        ({f'videoar_train_heartbeat_timestamp_seconds{{{T},rank="{rank}"}}': f"{rank}+60x30" for rank in range(2)}, "20m"),
    ),
    "VideoarRankStarved": (
        (
            {
                f'videoar_train_rank_data_seconds{{{T},rank="1"}}': "6x30",
                f'videoar_train_rank_step_seconds{{{T},rank="0"}}': "10x30",
            },
            "15m",
        ),
        (
            {
                f'videoar_train_rank_data_seconds{{{T},rank="1"}}': "1x30",
                f'videoar_train_rank_step_seconds{{{T},rank="0"}}': "10x30",
            },
            "15m",
        ),
    ),
    "VideoarNoProgress": (
        ({f"videoar_train_step{{{T}}}": "0+1x30 " + "1+1x29 " * 5}, "165m"),
        ({f"videoar_train_step{{{T}}}": "0+1x200"}, "165m"),
    ),
    "VideoarLossSpike": (
        ({f"videoar_train_loss{{{T}}}": "0.5x40 0.7x10"}, "45m"),
        ({f"videoar_train_loss{{{T}}}": "0.5x40 0.6 0.5x10"}, "45m"),
    ),
    "VideoarDiskFilling": (
        (
            {f"videoar_disk_free_ratio{{{T}}}": "0.2-0.001x100", f"videoar_disk_free_bytes{{{T}}}": "2e11-1e9x100"},
            "70m",
        ),
        ({f"videoar_disk_free_ratio{{{T}}}": "0.2x100", f"videoar_disk_free_bytes{{{T}}}": "2e11x100"}, "70m"),
    ),
    "VideoarLossNotANumber": (
        ({f"videoar_train_loss{{{T}}}": "0.5 0.5 NaN"}, "2m"),
        ({f"videoar_train_loss{{{T}}}": "0.5x3"}, "2m"),
    ),
    "VideoarStepsSkipped": (
        ({f'videoar_train_skipped_steps_total{{{T},reason="loss_spike"}}': "0x10 4x10"}, "15m"),
        ({f'videoar_train_skipped_steps_total{{{T},reason="loss_spike"}}': "0x10 2x10"}, "15m"),
    ),
    "VideoarSamplesCorrupt": (
        ({f"videoar_train_corrupt_samples_total{{{T}}}": "0x5 1x10"}, "10m"),
        ({f"videoar_train_corrupt_samples_total{{{T}}}": "0x20"}, "10m"),
    ),
    "VideoarFailuresAside": (
        ({f'videoar_train_aside_failures_total{{{T},what="samples"}}': "0x5 1x10"}, "10m"),
        ({f'videoar_train_aside_failures_total{{{T},what="samples"}}': "3x20"}, "10m"),
    ),
    "VideoarRestarts": (
        ({f"videoar_train_restarts_total{{{T}}}": "0x5 1x5 2x5 3x10"}, "20m"),
        ({f"videoar_train_restarts_total{{{T}}}": "0x5 1x20"}, "20m"),
    ),
    "VideoarCheckpointOld": (
        ({f"videoar_train_checkpoint_last_success_timestamp_seconds{{{T}}}": "0x300"}, "250m"),
        ({f"videoar_train_checkpoint_last_success_timestamp_seconds{{{T}}}": "0+60x300"}, "250m"),
    ),
    "VideoarWaitsForData": (
        ({f"videoar_train_data_wait_seconds_total{{{T}}}": "0+20x60"}, "40m"),
        ({f"videoar_train_data_wait_seconds_total{{{T}}}": "0+3x60"}, "40m"),
    ),
    "VideoarTokenizerStalled": (
        ({f"videoar_tokenizer_heartbeat_timestamp_seconds{{{T}}}": "0x30"}, "15m"),
        ({f"videoar_tokenizer_heartbeat_timestamp_seconds{{{T}}}": "0+60x30"}, "15m"),
    ),
    "VideoarTokenizationStalled": (
        ({f"videoar_pipeline_progress_ratio{{{T}}}": "0.5x60", f"videoar_pipeline_frames_total{{{T}}}": "100x60"}, "50m"),
        ({f"videoar_pipeline_progress_ratio{{{T}}}": "1x60", f"videoar_pipeline_frames_total{{{T}}}": "100x60"}, "50m"),
    ),
    "VideoarPlanningStalled": (
        ({f"videoar_pipeline_planning_progress_ratio{{{T}}}": "0.5x90"}, "80m"),
        ({f"videoar_pipeline_planning_progress_ratio{{{T}}}": "0.5+0.001x90"}, "80m"),
    ),
    "VideoarClipsRefused": (
        (
            {
                f'videoar_pipeline_clips_total{{{T},outcome="refused",reason="dark"}}': "0+3x60",
                f'videoar_pipeline_clips_total{{{T},outcome="encoded",reason=""}}': "0+1x60",
            },
            "40m",
        ),
        (
            {
                f'videoar_pipeline_clips_total{{{T},outcome="refused",reason="dark"}}': "0+1x60",
                f'videoar_pipeline_clips_total{{{T},outcome="encoded",reason=""}}': "0+3x60",
            },
            "40m",
        ),
    ),
    "VideoarTokenizationKeepsDying": (
        ({f'videoar_pipeline_retries_total{{{T},stage="encode"}}': "0+1x30"}, "30m"),
        ({f'videoar_pipeline_retries_total{{{T},stage="encode"}}': "0x10 3x20"}, "30m"),
    ),
    "VideoarJobDead": (
        ({f"up{{{T}}}": "1x5 0x20"}, "12m"),
        ({f"up{{{T}}}": "1x5 0 stale"}, "12m"),  # ended well: the job took its target away
    ),
    "VideoarGpuFault": (
        ({'DCGM_FI_DEV_XID_ERRORS{instance="h:9400",gpu="0"}': "0x5 79x3"}, "7m"),
        ({'DCGM_FI_DEV_XID_ERRORS{instance="h:9400",gpu="0"}': "0x10"}, "7m"),
    ),
}


def rule_test(alert: str, case: Case, rings: bool) -> dict[str, Any]:
    series, when = case
    return {
        "interval": "1m",
        "name": f"{alert} {'rings' if rings else 'is silent'}",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                "eval_time": when,
                "exp_samples": [{"labels": "{}", "value": 1}] if rings else [],
            }
        ],
    }


@pytest.mark.parametrize("alert", [alert.name for alert in ALERTS])
def test_each_alert_rings_and_is_silent(tmp_path: Path, alert: str) -> None:
    write(tmp_path)
    rings, silent = CASES[alert]
    plain = {
        "rule_files": ["recorded.yml", "alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [rule_test(alert, rings, True), rule_test(alert, silent, False)],
    }
    path = tmp_path / "prometheus" / "test.yml"
    path.write_text(yaml.safe_dump(plain))
    done = subprocess.run([program("promtool"), "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_line_in_the_runbook() -> None:
    text = (Path(__file__).parents[3] / "docs" / "operate.md").read_text()
    lines = {
        line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| Videoar")
    }
    assert lines == {alert.name: alert.severity for alert in ALERTS}
    assert list(CASES) and set(CASES) == set(lines)


def test_alertmanager_takes_the_routes_and_pages_only_pages(tmp_path: Path) -> None:
    write(tmp_path, page_url="http://pager.example/", ticket_url="http://desk.example/")
    config = str(tmp_path / "prometheus" / "alertmanager.yml")
    for severity in ("page", "ticket"):
        words = [program("amtool"), "config", "routes", "test", f"--config.file={config}", f"severity={severity}", "run=a"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == severity, done.stdout + done.stderr
