import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import Meter, MetricsPortError
from tests.helpers.step_report import REPORT


def scrape(address: str) -> dict[str, float]:
    """Read a running endpoint the way Prometheus does: over HTTP, by its own parser; sample name with labels -> value."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_a_step_is_served_over_http_and_read_by_prometheus_own_parser(tmp_path: Path) -> None:
    meter = Meter()
    address = meter.serve("127.0.0.1", 0, tmp_path / "run" / "metrics-address")
    assert (tmp_path / "run" / "metrics-address").read_text() == address + "\n"
    meter.step(REPORT)
    meter.step(REPORT)
    meter.observe("pipeline_stage_seconds", 0.02, stage="encode")
    found = scrape(address)
    meter.close()
    assert found["videoar_train_step"] == 3
    assert found["videoar_train_scale_loss{scale=2x2}"] == 0.6
    assert found["videoar_train_bit_accuracy_ratio{scale=1x1}"] == 0.55
    assert found["videoar_train_tokens_total"] == 1280
    assert found["videoar_train_tokens_per_second"] == 320
    assert found["videoar_train_data_wait_seconds_total"] == 0.5
    assert found["videoar_train_phase_seconds{phase=forward}"] == 0.75
    assert found["videoar_train_memory_bytes{kind=peak}"] == 2000
    assert found["videoar_train_skipped_steps_total{reason=nonfinite}"] == 2
    assert found["videoar_pipeline_stage_seconds_count{stage=encode}"] == 1
    assert found["videoar_pipeline_stage_seconds_bucket{le=0.03,stage=encode}"] == 1
    assert found["videoar_pipeline_stage_seconds_bucket{le=0.01,stage=encode}"] == 0
    assert "videoar_train_mfu_ratio" not in found, "an unknown figure is absent, not NaN"
    with pytest.raises(OSError):
        scrape(address)


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            MetricsPortError, match=rf"metrics port 127\.0\.0\.1:{port}: Address already in use; set metrics\.port"
        ):
            Meter().serve("127.0.0.1", port)


def test_only_declared_metrics_of_the_declared_kind_and_labels() -> None:
    meter = Meter()
    with pytest.raises(KeyError, match="train_lsos"):
        meter.set("train_lsos", 1.0)
    with pytest.raises(KeyError, match="train_loss is a gauge, not a counter"):
        meter.inc("train_loss")
    with pytest.raises(ValueError):
        meter.set("train_scale_loss", 1.0, size="1x1")
