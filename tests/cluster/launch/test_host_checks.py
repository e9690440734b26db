import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.hosts import ray_nodes
from cluster.hosts.ray_nodes import RayClusterError
from cluster.launch import host_checks
from cluster.launch.host_checks import Finding, check_hosts

# Stands for ssh: the last two words are the host and the command, which runs here.
SSH = """#!/bin/sh
while [ $# -gt 2 ]; do shift; done
case $1 in
  shut) echo "ssh: connect to host shut port 22: Connection refused" >&2; exit 255 ;;
  bare) echo "sh: 1: cd: no such folder" >&2; exit 2 ;;
esac
exec sh -c "$2"
"""
FACTS = {
    "host": "x", "python": "3.12.1", "code": "c0de", "configuration": "aa", "packages": {"torch": "2.13", "ray": "2.60"}, "gpus": [],
    "dtype": "auto is float32", "memory_gb": 8.0, "free_gb": {"/run": 5.0},
}  # fmt: skip


@pytest.fixture
def hostfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return tmp_path / "hosts"


def rows(hostfile: Path, folder: Path, names: str, slots: int = 2) -> dict[str, Finding]:
    hostfile.write_text("".join(f"{name} slots={slots}\n" for name in names.split()))
    config = hostfile.parent / "job.yaml"
    config.write_text("")
    return {row.check: row for row in check_hosts(hostfile, config, [folder], "127.0.0.1")}


def test_hosts_are_asked_compared_and_meet(hostfile: Path, tmp_path: Path) -> None:
    """Two hosts that answer for real, on this machine, one that cannot be reached and one without the project."""
    found = rows(hostfile, tmp_path / "runs/new", "one two shut bare")
    for name in ("one", "two"):
        assert found[f"host {name}"].ok and "2 slot(s), no GPU, " in found[f"host {name}"].found
        assert "auto is " in found[f"host {name}"].found
    assert found["host shut"] == Finding(
        "host shut", False, "ssh: ssh: connect to host shut port 22: Connection refused",
        "make `ssh shut true` work without a password",
    )  # fmt: skip
    assert not found["host bare"].ok and found["host bare"].fix.startswith("install the project with /")
    for what in ("code", "configuration", "python"):
        assert found[f"hosts' {what}"].ok and found[f"hosts' {what}"].found.endswith(" on all 2 hosts"), found
    assert found["shared folder"].ok and found["shared folder"].found == f"{tmp_path / 'runs/new'} is one on 2 host(s)"
    assert found["all-reduce"].ok and found["all-reduce"].found.startswith("2 hosts, 64 MiB: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "hosts", "job.yaml"], "nothing is left"


class Answers:
    """Hosts whose facts differ from FACTS."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **changes: dict[str, Any]) -> None:
        self.changes = changes
        monkeypatch.setattr(host_checks, "_ask", self)

    def __call__(self, host: host_checks.Host, asked: dict[str, Any], reach: object) -> host_checks.Answer:
        changed = dict(self.changes.get(host.name, {}))
        clock, problem = changed.pop("clock", 0.0), changed.pop("unmet", "")
        if "reduce" in asked:
            facts = {"sum": 1.0, "gb_per_second": 1.0 + asked["reduce"]["rank"]}
            return host_checks.Answer(host, {} if problem else facts, problem)
        return host_checks.Answer(host, {**FACTS, "mark": Path(asked["mark"]).read_text(), **changed}, clock=clock)


@pytest.mark.parametrize(
    ("change", "check", "found"),
    [
        ({"code": "0ld"}, "hosts' code", "c0de on a, 0ld on b"),
        ({"configuration": "no /x.yaml"}, "hosts' configuration", "aa on a, no /x.yaml on b"),
        (
            {"packages": {"torch": "2.12", "ray": "missing"}},
            "hosts' packages",
            "torch 2.13 on a, 2.12 on b; ray 2.60 on a, missing on b",
        ),
        ({"mark": ""}, "shared folder", "b does not see what this machine writes to "),
        ({"clock": 7.0}, "host b", "its clock is 7 s off"),
        ({"gpus": ["H100"]}, "host b", "2 slots, but 1 GPU(s)"),
        ({"free_gb": {"/run": -1.0}}, "host b", "/run is not writable there"),
        ({"unmet": "Connection timed out"}, "all-reduce", "b: Connection timed out"),
    ],
)
def test_what_differs_is_named_with_its_host(
    hostfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], check: str, found: str
) -> None:
    Answers(monkeypatch, b=change)
    bad = {name: row for name, row in rows(hostfile, tmp_path, "a b").items() if not row.ok}
    assert set(bad) == {check} and bad[check].found.startswith(found) and bad[check].fix, json.dumps(found)


def test_a_wrong_hostfile_is_one_finding(hostfile: Path, tmp_path: Path) -> None:
    found = rows(hostfile, tmp_path, "good", slots=0)
    assert list(found) == ["hostfile"] and found["hostfile"].found.startswith(f"{hostfile}:1: host good has no slots")


def test_no_ray_cluster_is_one_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RayClusterError("--via ray: cannot join a Ray cluster at auto: run this on a node of it")

    monkeypatch.setattr(ray_nodes, "join", refuse)
    (row,) = check_hosts(None, tmp_path / "job.yaml", [tmp_path], via="ray")
    assert not row.ok and row.check == "--via ray" and "cannot join a Ray cluster" in row.found


def test_a_node_that_is_lost_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two nodes, one leaves the cluster before it is asked; the other answers too late."""
    live = [ray_nodes.Node("a", "0", "10.0.0.1", 1.0, 0), ray_nodes.Node("b", "1", "10.0.0.2", 1.0, 0)]

    def complete(host: host_checks.Host, command: str, given: bytes, seconds: float) -> None:
        if host.name == "a":
            raise RayClusterError("a is not in the Ray cluster")
        raise subprocess.TimeoutExpired(command, seconds)

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(ray_nodes, "join", lambda: None)
    monkeypatch.setattr(ray_nodes, "nodes", lambda: live)
    monkeypatch.setattr(ray_nodes, "complete", complete)
    found = {row.check: row.found for row in check_hosts(None, tmp_path / "job.yaml", [tmp_path], via="ray", ranks=2)}
    assert found == {"host a": "a is not in the Ray cluster", "host b": "no answer in 120 s"}
