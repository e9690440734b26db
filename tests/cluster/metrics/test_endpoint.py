from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from cluster.config import MetricsConfig
from cluster.metrics import Endpoint, Meter
from cluster.metrics.endpoint import TargetError, advertised_host, bind_host


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_the_target_is_written_kept_by_a_death_and_taken_away_by_a_good_end(tmp_path: Path) -> None:
    targets, run = tmp_path / "targets", tmp_path / "run"
    config = MetricsConfig(port=0, targets=targets)
    first = Endpoint(Meter(), config, run, "trial")
    (file,) = targets.glob("*.json")
    target = json.loads(file.read_text())
    assert target[0]["targets"] == [first.address] and target[0]["labels"]["run"] == "trial"
    assert json.loads((run / "metrics-target.json").read_text()) == target
    assert (run / "metrics-address").read_text() == first.address + "\n"
    first.close(well=False)
    assert file.exists(), "a dead job's silence must ring"
    second = Endpoint(Meter(), config, run, "trial")
    assert list(targets.glob("*.json")) == [file], "a restart writes its own file anew"
    again = json.loads(file.read_text())[0]
    assert again["targets"] == [second.address] and again["labels"] == target[0]["labels"]
    second.close(well=True)
    assert not list(targets.iterdir())


def test_two_runs_of_one_name_neither_overwrite_nor_mix(tmp_path: Path) -> None:
    config = MetricsConfig(port=0, targets=tmp_path / "targets")
    both = [Endpoint(Meter(), config, tmp_path / folder / "run", "") for folder in ("a", "b")]
    names = {json.loads(path.read_text())[0]["labels"]["run"] for path in (tmp_path / "targets").glob("*.json")}
    assert len(names) == 2 and "run" in names
    third = Endpoint(Meter(), config, tmp_path / "b" / "run", "")
    assert {json.loads(path.read_text())[0]["labels"]["run"] for path in (tmp_path / "targets").glob("*.json")} == names
    for endpoint in (*both, third):
        endpoint.close(well=True)


def test_where_it_listens_and_what_it_is_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain, named = MetricsConfig(), MetricsConfig(host="10.0.0.5", advertise="gateway")
    several = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}
    assert bind_host(plain, {}) == bind_host(plain, {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}) == "127.0.0.1"
    assert bind_host(plain, {"WORLD_SIZE": "16", "LOCAL_SIZE": "8"}) == "0.0.0.0", "as DeepSpeed's launcher says it"
    assert bind_host(plain, {"WORLD_SIZE": "8", "LOCAL_SIZE": "8", "MASTER_ADDR": "127.0.0.1"}) == "127.0.0.1"
    assert bind_host(plain, {"WORLD_SIZE": "8", "LOCAL_SIZE": "8", "MASTER_ADDR": "node1"}) == "0.0.0.0", (
        "one of several is left"
    )
    assert bind_host(plain, {"SLURM_JOB_ID": "7"}) == "0.0.0.0"
    assert bind_host(plain, several) == bind_host(plain, {"KUBERNETES_SERVICE_HOST": "10.1.0.1"}) == "0.0.0.0"
    assert bind_host(named, several) == "10.0.0.5" and advertised_host(named, "10.0.0.5", {}) == "gateway"
    assert advertised_host(plain, "127.0.0.1", {}) == "127.0.0.1"
    assert advertised_host(plain, "0.0.0.0", {}) == socket.gethostname()
    assert advertised_host(plain, "0.0.0.0", {"POD_IP": "10.2.0.7"}) == "10.2.0.7"
    monkeypatch.setenv("VIDEOAR_METRICS_TARGETS", str(tmp_path / "targets"))
    Endpoint(Meter(), MetricsConfig(port=0), tmp_path / "run", "x").close(well=False)
    assert len(list((tmp_path / "targets").glob("x-*.json"))) == 1


def test_a_folder_of_targets_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match=r"metrics\.targets: .*: .*; set it to a folder that can be written"):
        Endpoint(Meter(), MetricsConfig(port=0, targets=tmp_path / "file"), tmp_path / "run", "x")


def fetched_while_it_closes(endpoint: Endpoint) -> str:
    """Close after a good end, and fetch half a second later."""
    last: list[str] = []
    timer = threading.Timer(0.5, lambda: last.append(scrape(endpoint.address)))
    timer.start()
    endpoint.close(well=True)
    timer.join()
    return last[0]


def test_a_good_end_waits_for_the_last_values_to_be_fetched(tmp_path: Path) -> None:
    meter = Meter()
    endpoint = Endpoint(meter, MetricsConfig(port=0, linger_seconds=60), tmp_path, "x")
    meter.set("pipeline_progress_ratio", 0.86)
    scrape(endpoint.address)
    scrape(endpoint.address)
    meter.set("pipeline_progress_ratio", 1.0)
    assert not meter.linger(0.1, known=False), "nobody came"
    assert "videoar_pipeline_progress_ratio 1.0" in fetched_while_it_closes(endpoint)


def test_a_good_end_does_not_wait_when_nobody_scrapes(tmp_path: Path) -> None:
    meter = Meter()
    endpoint = Endpoint(meter, MetricsConfig(port=0, linger_seconds=10_000), tmp_path, "x")
    endpoint.close(well=True)  # returns
    assert not meter.linger(10_000, known=True)


def test_a_short_job_waits_for_the_first_fetch_where_prometheus_was_told(tmp_path: Path) -> None:
    """Prometheus reads its files of targets every few seconds: a job of two seconds was never seen."""
    meter = Meter()
    endpoint = Endpoint(meter, MetricsConfig(port=0, linger_seconds=60, targets=tmp_path / "targets"), tmp_path, "x")
    meter.set("pipeline_progress_ratio", 1.0)
    assert "videoar_pipeline_progress_ratio 1.0" in fetched_while_it_closes(endpoint)
    assert not list((tmp_path / "targets").iterdir())


def test_a_long_job_that_was_never_fetched_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint(Meter(), MetricsConfig(port=0, linger_seconds=600, targets=tmp_path / "targets"), tmp_path, "x")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    endpoint.close(well=True)  # returns
