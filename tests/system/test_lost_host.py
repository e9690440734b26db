"""Three hosts train with ZeRO-3; one is cut off in the middle, and comes back. Real ssh between network namespaces (tests/helpers/hosts.py).

A real Prometheus beside them finds the job under its first host's name, and sees how many ranks there are.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.monitoring.dashboards import write
from cluster.runtime import checkpoint_folders
from tests.helpers import hosts, training
from tests.helpers.prometheus import hurried, prometheus, until

pytestmark = pytest.mark.system
RANKS = 'count(videoar_train_rank_step_seconds{run="three"})'
LIMITS = ["cluster.host_seconds=4", "cluster.host_ask_seconds=2", "cluster.restart_wait_seconds=0"]


def launch(config: Path, run: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "cluster.cli.main", "launch", "-c", str(config), f"run.dir={run}", *LIMITS, *words]


def test_a_host_that_is_cut_off_ends_and_the_job_goes_on_and_takes_it_back(tmp_path: Path) -> None:
    config, run = training.prepare(tmp_path), tmp_path / "run"
    training.train(config, 1, tmp_path / "quiet")
    write(tmp_path / "monitoring")
    watched = tmp_path / "monitoring" / "prometheus"
    scrape = hurried(watched, "127.0.0.1:9")
    with hosts.several(3, tmp_path / "net") as net, prometheus(scrape, tmp_path, net.known()) as url:
        keys = [
            "train.checkpoint_every=2",
            f"metrics.targets={watched / 'targets'}",
            "run.name=three",
            "cluster.heartbeat_seconds=300",
        ]
        words = launch(config, run, *keys, "--hostfile", str(net.hostfile()))
        env = {**training.environment(), **{key: net.env[key] for key in ("PATH", "GLOO_SOCKET_IFNAME")}}
        with subprocess.Popen(words, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
            try:
                said = training.until(job, "step 5/20")
                with training.standing(run, rank=1):
                    until(url, f"{RANKS} == 3")
                    until(url, 'up{run="three",instance=~"host-0:.*"} == 1')
                net.cut(2)
                began = time.monotonic()
                said += training.until(job, f"[{net.addresses[2]}] ssh (exit code 255)")
                assert time.monotonic() - began < 30
                said += training.until(job, "going on with 2 of 3 hosts")
                assert net.processes(2) == [], "a host that is cut off ends its ranks by itself"
                said += training.until(job, "continuing after step")
                said += training.until(job, "/20")  # ranks are counted once a step is made
                with training.standing(run, rank=1):
                    until(url, f"{RANKS} == 2")
                    net.join(2)
                    said += training.until(job, f"{net.addresses[2]} answers again")
                rest, _ = job.communicate(timeout=training.PATIENCE)
            finally:
                job.send_signal(signal.SIGKILL)
        text = said + rest
        assert job.returncode == 0, text
        assert "3 rank(s)" in rest and "[ERROR]" not in text, text
        assert [net.processes(number) for number in range(3)] == [[], [], []]
        (last,) = until(url, 'max(max_over_time(videoar_train_step{run="three"}[5m]))')
        assert last["value"][1] == "20", "the last values were fetched before the job left"
        until(url, 'max(max_over_time(videoar_train_restarts_total{run="three"}[5m])) >= 2')
        assert not list((watched / "targets").glob("*.json"))
        until(url, 'up{run="three"}', found=False)
    training.compare(tmp_path / "quiet", run, exact_to=0)
    assert not checkpoint_folders.damage(checkpoint_folders.listed(run / "checkpoints")[0])
