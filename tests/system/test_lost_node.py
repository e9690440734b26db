"""Two nodes of a Ray cluster train with ZeRO-3 through launcher actors; one dies in the middle, and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from cluster.runtime.job_protocol import LAUNCH
from tests.helpers import training

pytestmark = pytest.mark.system
LIMITS = ["cluster.host_seconds=8", "cluster.host_ask_seconds=1", "cluster.restart_wait_seconds=0", "train.checkpoint_every=2"]


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    with tempfile.TemporaryDirectory(prefix="vrayt-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)  # also the note of which cluster is the current one
        (Path(folder) / "ray").mkdir()
        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1, "node_name": "first", "include_dashboard": False, "object_store_memory": 100_000_000, "_system_config": quick,
            },
        )  # fmt: skip
        try:
            yield made
        finally:
            made.shutdown()


def die(node: Any) -> None:
    """Kill all processes of a node at once, as when its machine dies."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in (raylet, *reversed(raylet.children(recursive=True))):
        process.suspend()
        process.kill()


def of_launches() -> list[str]:
    """What runs of any launch of this test."""
    found = []
    for process in psutil.process_iter():
        try:
            if LAUNCH in process.environ() and str(training.ROOT) in process.environ().get("PYTHONPATH", ""):
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_a_node_that_dies_is_left_out_and_taken_back(ray_cluster: Cluster, tmp_path: Path) -> None:
    config, run = training.prepare(tmp_path), tmp_path / "run"
    training.train(config, 1, tmp_path / "quiet")
    second = {"num_cpus": 1, "object_store_memory": 100_000_000, "node_name": "second"}
    node = ray_cluster.add_node(**second)
    words = [sys.executable, "-m", "cluster.cli.main", "launch", "-c", str(config), f"run.dir={run}", "--via", "ray", *LIMITS]
    env = {**training.environment(), "RAY_ADDRESS": ray_cluster.address, "AWS_SECRET_ACCESS_KEY": "hush-of-this-test"}
    with subprocess.Popen(words, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        try:
            said = training.until(job, "step 5/20")
            assert not any(
                "hush-of-this-test" in " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
            )
            die(node)
            ray_cluster.remove_node(node, allow_graceful=False)
            said += training.until(job, "going on with 1 of 2 hosts, without second")
            said += training.until(job, "continuing after step")
            with training.standing(run):
                ray_cluster.add_node(**second)
                said += training.until(job, "second answers again")
            rest, _ = job.communicate(timeout=training.PATIENCE)
        finally:
            job.kill()
    text = said + rest
    assert job.returncode == 0, text
    assert "[second] the node is lost" in text and "2 rank(s)" in rest and "[ERROR]" not in text, text
    assert of_launches() == []
    training.compare(tmp_path / "quiet", run, exact_to=0)
