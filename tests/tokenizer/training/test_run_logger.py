"""The metrics of tokenizer training over HTTP and in lines."""

from __future__ import annotations

import json
import math
import urllib.request
from pathlib import Path

import pytest

from cluster.config import MetricsConfig
from cluster.metrics import MetricsPortError
from tokenizer.training.run_logger import METRICS, RunLogger

STEP = {
    "step": 7,
    "clips": 4,
    "loss": 0.5,
    "l1": 0.1,
    "perceptual": 0.2,
    "psnr": 21.5,
    "grad_norm": 1.25,
    "learning_rate": 1e-3,
    "bit_entropy": {"1x1": 0.75, "2x2": math.nan},
    "seconds": {"total": 0.5, "data": 0.125},
}


def test_metrics_are_served_while_it_runs(tmp_path: Path) -> None:
    with RunLogger(tmp_path, True, MetricsConfig(port=0), 0) as logger:
        logger.log(STEP, write=False)
        logger.log({**STEP, "step": 8}, write=True)
        address = (tmp_path / "metrics-address").read_text().strip()
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            said = answer.read().decode().splitlines()
        with pytest.raises(MetricsPortError, match=rf"{address}: .*set metrics\.port"):
            RunLogger(tmp_path / "other", True, MetricsConfig(port=int(address.split(":")[1])), 0)
    for line in (
        "videoar_tokenizer_step 8.0",
        "videoar_tokenizer_loss 0.5",
        'videoar_tokenizer_term{term="perceptual"} 0.2',
        "videoar_tokenizer_psnr_db 21.5",
        'videoar_tokenizer_bit_entropy_bits{scale="1x1"} 0.75',
        "videoar_tokenizer_clips_total 8.0",
        "videoar_tokenizer_data_wait_seconds_total 0.25",
        'videoar_tokenizer_phase_seconds{phase="total"} 0.5',
    ):
        assert line in said
    assert not any("2x2" in line for line in said)
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [8]


def test_lines_of_lost_steps_are_dropped(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step')
    with RunLogger(tmp_path, True, MetricsConfig(enabled=False), 2) as logger:
        logger.log({**STEP, "step": 3}, write=True)
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1, 2, 3]


def test_a_full_disk_ends_no_training_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with RunLogger(tmp_path, True, MetricsConfig(enabled=False), 0) as logger:
        with monkeypatch.context() as disk:
            disk.setattr("cluster.metrics.step_report._append", full)
            for step in (1, 2):
                logger.log({**STEP, "step": step}, write=True)
        logger.log({**STEP, "step": 3}, write=True)
    assert capsys.readouterr().out.count("No space left on device; training goes on") == 1
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1, 2, 3]


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    with RunLogger(tmp_path, False, MetricsConfig(), 0) as logger:
        logger.log(STEP, write=True)
    assert list(tmp_path.iterdir()) == []
