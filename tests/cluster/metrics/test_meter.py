import json
import socket
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import METRICS, Meter, MetricsPortError, heartbeat
from pretrain.loop.guard import Guard
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


def test_the_time_that_is_left(tmp_path: Path) -> None:
    meter = Meter()
    meter.step(REPORT, 13)
    address = meter.serve("127.0.0.1", 0)
    found = scrape(address)
    meter.close()
    assert (found["videoar_train_steps"], found["videoar_train_eta_seconds"]) == (13, 20), "10 steps of 2 s"


def test_counters_are_there_from_the_start() -> None:
    """A rise can only be seen of a counter that was there before: the first skipped step never rang."""
    meter = Meter()
    meter.begin("train_")
    address = meter.serve("127.0.0.1", 0)
    found = scrape(address)
    meter.close()
    assert found["videoar_train_corrupt_samples_total"] == found["videoar_train_tokens_total"] == 0
    assert found["videoar_train_skipped_steps_total{reason=loss_spike}"] == 0
    assert found["videoar_train_aside_failures_total{what=samples}"] == 0
    assert not any(name.startswith("videoar_pipeline") for name in found)
    declared = {Guard.reason(*case) for case in ((float("nan"), 1.0, True), (2.0, 1.0, True), (0.5, 1.0, False))}
    assert declared == set(METRICS["train_skipped_steps_total"].values)


@pytest.mark.parametrize(("ranks", "series"), [(1, 1), (64, 64), (65, 16), (1024, 16)])
def test_series_of_ranks_are_bounded_and_hold_the_silent_ones(tmp_path: Path, ranks: int, series: int) -> None:
    for rank in range(ranks):
        path = heartbeat.path_of(tmp_path, rank)
        path.parent.mkdir(exist_ok=True)
        odd = rank == ranks // 2
        beat = heartbeat.Beat(rank, "host", 1, 1000.0 + (0 if odd else 30), 7, "step", 1.0 + odd, 0.1 + odd, 10 + odd, 20 + odd)
        path.write_text(json.dumps(asdict(beat)))
    meter = Meter()
    meter.listen(tmp_path)
    address = meter.serve("127.0.0.1", 0)
    everything = scrape(address)
    found = {name: value for name, value in everything.items() if "heartbeat" in name}
    meter.close()
    assert len(found) == series
    of_ranks = [name for name in everything if "rank=" in name]
    assert len(of_ranks) == 5 * series, "heartbeat, step, data wait, main and device memory"
    assert everything[f"videoar_train_rank_data_seconds{{rank={ranks // 2}}}"] == 1.1, "the one that all wait for is among them"
    assert found[f"videoar_train_heartbeat_timestamp_seconds{{rank={ranks // 2}}}"] == 1000.0
