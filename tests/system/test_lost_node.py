"""Three hosts of a Ray cluster train with ZeRO-3 through launcher actors; one is cut off in the middle, and comes back.

The hosts are network namespaces with a Ray node in each (tests/helpers/ray_of_hosts.py); the launch runs beside them, on the head, which
has no CPU for ranks. No ssh is used. `make proof-hosts` runs it: test_lost_host.py is the same over ssh, and in `make test`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers import hosts, training
from tests.helpers.ray_of_hosts import ray_of_hosts

pytestmark = [pytest.mark.system, pytest.mark.proof]
LIMITS = ["cluster.host_seconds=8", "cluster.host_ask_seconds=1", "cluster.restart_wait_seconds=0", "train.checkpoint_every=2"]
SECRET = "hush-of-this-test"


def ranks(net: hosts.Hosts, number: int) -> list[str]:
    """What runs of the job on a host."""
    return [line for line in net.processes(number) if "pretrain.train" in line or "node_launcher" in line]


def preflight_sees_them(config: Path, run: Path, env: dict[str, str]) -> None:
    """Each node is asked through Ray, and they meet over their own network."""
    words = [
        sys.executable,
        "-m",
        "cluster.cli.main",
        "preflight",
        "-c",
        str(config),
        f"run.dir={run}",
        "--via",
        "ray",
        "--json",
    ]
    asked = subprocess.run(
        words, env=env, cwd=config.parent, text=True, capture_output=True, timeout=training.PATIENCE, check=False
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    found = {row["check"]: row["found"] for row in json.loads(asked.stdout.splitlines()[-1])["findings"]}
    assert all(found[f"host host-{number}"].startswith("1 slot(s), no GPU, ") for number in range(3))
    assert found["hosts' code"].endswith("on all 3 hosts") and found["shared folder"].endswith("is one on 3 host(s)")
    assert found["all-reduce"].startswith("3 hosts, 64 MiB: ")


def test_a_node_that_is_cut_off_is_left_out_and_taken_back(tmp_path: Path) -> None:
    config, run = training.prepare(tmp_path), tmp_path / "run"
    training.train(config, 1, tmp_path / "quiet")
    words = [sys.executable, "-m", "cluster.cli.main", "launch", "-c", str(config), f"run.dir={run}", "--via", "ray", *LIMITS]
    with hosts.several(3, tmp_path / "net") as net, ray_of_hosts(net) as cluster:
        preflight_sees_them(config, run, {**training.environment(), **cluster.environment, "GLOO_SOCKET_IFNAME": "eth0"})
        env = {**training.environment(), **cluster.environment, "GLOO_SOCKET_IFNAME": "eth0", "AWS_SECRET_ACCESS_KEY": SECRET}
        with subprocess.Popen(words, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
            try:
                said = training.until(job, "step 5/20")
                assert all(ranks(net, number) for number in range(3))
                shown = psutil.process_iter(["cmdline"])
                assert not any(SECRET in " ".join(process.info["cmdline"] or ()) for process in shown)
                net.cut(2)
                began = time.monotonic()
                said += training.until(job, "[host-2] the node is lost")
                assert time.monotonic() - began < 30
                said += training.until(job, "going on with 2 of 3 hosts, without host-2")
                print(f"noticed and left out after {time.monotonic() - began:.1f} s")
                assert ranks(net, 2) == [], "a host that is cut off ends its ranks by itself"
                said += training.until(job, "continuing after step")
                with training.standing(run):
                    net.kill(2)  # as its service manager does, or a new machine of its name
                    net.join(2)
                    cluster.node(2)
                    said += training.until(job, "host-2 answers again")
                rest, _ = job.communicate(timeout=training.PATIENCE)
            finally:
                job.kill()
        text = said + rest
        assert job.returncode == 0, text
        assert "3 rank(s)" in rest and "[ERROR]" not in text, text
        assert [ranks(net, number) for number in range(3)] == [[], [], []]
    training.compare(tmp_path / "quiet", run, exact_to=0)
