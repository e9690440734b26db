"""A real run under a real Prometheus and Alertmanager: targets, restarts, last values, panels, and alerts that arrive."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.config import MetricsConfig
from cluster.metrics import Endpoint, Meter, heartbeat
from cluster.monitoring.dashboards import write
from cluster.monitoring.train_panels import CHECKPOINTS, RANKS, SCALES, TRAINING
from cluster.runtime.ports import free_port
from tests.helpers import training
from tests.helpers.prometheus import PATIENCE, alertmanager, hurried, prometheus, until
from tests.helpers.step_report import REPORT

pytestmark = pytest.mark.system
HIDDEN = {"validation loss"}
"""Panels without data where there are no held-out shards."""


@contextmanager
def pager() -> Iterator[tuple[str, queue.Queue[tuple[str, str, str]]]]:
    """Take what Alertmanager sends: (alert, run, status)."""
    arrived: queue.Queue[tuple[str, str, str]] = queue.Queue()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            plain = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for alert in plain["alerts"]:
                arrived.put((alert["labels"]["alertname"], alert["labels"].get("run", ""), alert["status"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", arrived
        server.shutdown()


def wait_for(arrived: queue.Queue[tuple[str, str, str]], wanted: tuple[str, str, str]) -> list[tuple[str, str, str]]:
    """Return what arrived before it."""
    seen = []
    while (alert := arrived.get(timeout=PATIENCE)) != wanted:
        seen.append(alert)
    return seen


def test_nan_and_a_dead_job_reach_the_pager_and_a_good_end_is_quiet(tmp_path: Path) -> None:
    address, folder = f"127.0.0.1:{free_port()}", tmp_path / "prometheus"
    with pager() as (url, arrived):
        write(tmp_path, page_url=url, ticket_url=url)
        config = hurried(folder, address)
        metrics = MetricsConfig(port=0, targets=folder / "targets")
        with alertmanager(folder / "alertmanager.yml", tmp_path, address), prometheus(config, tmp_path) as server:
            good, bad = Meter(), Meter()
            ends_well = Endpoint(good, metrics, tmp_path / "good", "good")
            dies = Endpoint(bad, metrics, tmp_path / "bad", "bad")
            good.step(REPORT)
            bad.step(replace(REPORT, loss=float("nan")))
            before = wait_for(arrived, ("VideoarLossNotANumber", "bad", "firing"))
            until(server, 'count_over_time(up{run="good"}[1m]) > 3')
            ends_well.close(well=True)
            dies.close(well=False)
            before += wait_for(arrived, ("VideoarJobDead", "bad", "firing"))
            until(server, 'up{run="good"}', found=False)
            assert not [alert for alert in before if alert[1] == "good"], "a job that ended well is quiet"


def test_a_real_run_is_found_followed_through_a_restart_and_forgotten(tmp_path: Path) -> None:
    """The job answers at another address than Prometheus's own, as on another host.

    Rank 1 is held where Prometheus is to look, so that a quick machine does not end the job before: it learns of targets every 5 seconds.
    """
    config, run, out = training.prepare(tmp_path), tmp_path / "run", tmp_path / "monitoring"
    write(out)
    folder = out / "prometheus"
    command = [sys.executable, "-m", "cluster.cli.main", "launch", "-c", str(config), f"run.dir={run}", "run.name=watched"]
    keys = ["cluster.ranks_per_host=2", "metrics.host=127.0.0.2", f"metrics.targets={folder / 'targets'}"]
    keys += ["cluster.heartbeat_seconds=300"]
    with (
        prometheus(hurried(folder, "127.0.0.1:9"), tmp_path) as url,
        subprocess.Popen(
            [*command, *keys],
            env=training.environment(),
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as job,
    ):
        said = training.until(job, "step 6/20")
        os.kill(heartbeat.read(run)[1].pid, signal.SIGSTOP)
        until(url, 'up{run="watched",instance=~"127.0.0.2:.*"} == 1')
        os.kill(heartbeat.read(run)[1].pid, signal.SIGKILL)
        said += training.until(job, "step 16/20")
        os.kill(heartbeat.read(run)[1].pid, signal.SIGSTOP)
        until(url, 'count_over_time((videoar_train_step{run="watched"} > 15)[1m:500ms]) > 5')
        os.kill(heartbeat.read(run)[1].pid, signal.SIGCONT)
        rest, _ = job.communicate(timeout=training.PATIENCE)
        assert job.returncode == 0, said + rest
        (seen,) = until(url, 'max(max_over_time(timestamp(videoar_train_step{run="watched"} > 15)[5m:500ms]))')
        moment = float(seen["value"][1])
        for dashboard in (TRAINING, SCALES, RANKS, CHECKPOINTS):
            for panel in dashboard.panels:
                for query, _ in panel.queries:
                    plain = query.replace("$__rate_interval", "1m").replace("$run", "watched")
                    words = urllib.parse.urlencode({"query": plain, "time": moment})
                    with urllib.request.urlopen(f"{url}/api/v1/query?{words}", timeout=10) as answer:
                        found = json.load(answer)["data"]["result"]
                    assert bool(found) != (panel.title in HIDDEN), f"{dashboard.name}: {panel.title}: {plain}: {found}"
        (last,) = until(url, 'max(max_over_time(videoar_train_step{run="watched"}[5m]))')
        assert last["value"][1] == "20", "the last values were fetched before the job left"
        (restarts,) = until(url, 'max(max_over_time(videoar_train_restarts_total{run="watched"}[5m]))')
        assert restarts["value"][1] == "1"
        assert not list((folder / "targets").glob("*.json"))
        until(url, 'up{run="watched"}', found=False)
