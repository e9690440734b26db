"""`videoar launch --hostfile` over real ssh, with network namespaces as hosts (root on Linux)."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import training
from tests.helpers.hosts import Hosts, several

pytestmark = pytest.mark.system
RANK = """
import os, signal, sys, time
import torch.distributed as dist, torch
from pathlib import Path
rank, restarts, run = int(os.environ["RANK"]), os.environ["VIDEOAR_RESTARTS"], Path(os.environ["VIDEOAR_RUN"])
dist.init_process_group("gloo")
total = torch.tensor([float(rank + 1)])
dist.all_reduce(total)
address = os.uname().nodename
os.write(1, f"rank {rank} at {address} after {restarts} restarts: sum {total.item():g}\\n".encode())
dist.barrier()
if restarts == "0" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if restarts == "0":
    (run / "left").touch()
    signal.pause()  # as a rank whose peer is gone and whose collective does not notice
os.write(1, b"ready\\n")
flag = torch.zeros(1)
while not flag.item():
    flag[0] = float((run / "stop").exists())
    dist.all_reduce(flag)
dist.barrier()
dist.destroy_process_group()
sys.exit(75)
"""
DRIVER = """
import sys
from pathlib import Path
from cluster.config import load
from cluster.launch.launcher import run, training_job
config = load(sys.argv[1], ["cluster.restart_wait_seconds=0"])
sys.exit(run(config, training_job(config, "fake_rank", hostfile=Path(sys.argv[2]))))
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    with several(2, tmp_path / "net") as made:
        monkeypatch.setenv("PATH", made.env["PATH"])
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
        yield made


def test_two_hosts_restart_after_a_dead_rank_and_stop_cleanly(net: Hosts, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tmp_path / "job.yaml"
    config.write_text(f"run: {{dir: {run}}}\n")
    hostfile = net.hostfile()
    (tmp_path / "fake_rank.py").write_text(RANK)
    env = {**net.env, "PYTHONPATH": str(tmp_path), "VIDEOAR_RUN": str(run), "DS_ACCELERATOR": "cpu"}
    words = [sys.executable, "-c", DRIVER, str(config), str(hostfile)]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launch:
        assert launch.stdout is not None
        lines: list[str] = []
        for line in launch.stdout:
            lines.append(line)
            if line.endswith("ready\n") and sum(text.endswith("ready\n") for text in lines) == 2:
                launch.send_signal(signal.SIGTERM)
    text = "".join(lines)
    assert launch.returncode == 75, text
    for restarts in (0, 1):
        for rank in (0, 1):
            assert f"rank {rank} at host-{rank} after {restarts} restarts: sum 3" in text, text
    assert f"[{net.addresses[0]}] rank 0 at" in text, "each line says whose it is"
    assert "exit code 247 (SIGKILL); restart 1 of 3" in text and "asking the ranks on all hosts" in text
    assert (run / "left").exists() and [net.processes(0), net.processes(1)] == [[], []], (
        "a rank that waited for a dead peer must not live on"
    )


def videoar(*words: str, env: dict[str, str]) -> tuple[int, str]:
    """Run a command to its end; returns its exit code and all it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli.main", *words], env=env, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def test_preflight_says_what_is_wrong_with_each_host(net: Hosts, tmp_path: Path) -> None:
    """A host whose key is refused, one that is not there, one with other code."""
    config = training.prepare(tmp_path)
    hostfile = net.hostfile()
    env = {**training.environment(), **net.env}
    code, text = videoar("preflight", "-c", str(config), "--hostfile", str(hostfile), "--json", env=env)
    rows = {row["check"]: row for row in json.loads(text.strip().splitlines()[-1])["findings"]}
    for check in (f"host {net.addresses[0]}", f"host {net.addresses[1]}", "shared folder", "all-reduce", "hosts' code"):
        assert rows[check]["ok"], rows[check]
    gone = net.addresses[0].rpartition(".")[0] + ".99"
    hostfile.write_text(f"{net.addresses[0]} slots=1\n{gone} slots=1\n")
    code, text = videoar("preflight", "-c", str(config), "--hostfile", str(hostfile), "--json", env=env)
    rows = {row["check"]: row for row in json.loads(text.strip().splitlines()[-1])["findings"]}
    assert code == 1 and rows[f"host {net.addresses[0]}"]["ok"] and "ssh: " in rows[f"host {gone}"]["found"], rows
    (net.folder / "authorized").write_text("")
    code, text = videoar("preflight", "-c", str(config), "--hostfile", str(hostfile), "--json", env=env)
    rows = {row["check"]: row for row in json.loads(text.strip().splitlines()[-1])["findings"]}
    assert code == 1 and "Permission denied" in rows[f"host {net.addresses[0]}"]["found"], rows
    code, text = videoar("launch", "-c", str(config), "--hostfile", str(hostfile), "cluster.host_seconds=4", env=env)
    assert code == 2 and "none of the 2 hosts" in text and "Permission denied" in text, text


def test_a_host_with_other_code_is_named_and_nothing_is_trained(net: Hosts, tmp_path: Path) -> None:
    config, hostfile = training.prepare(tmp_path), net.hostfile()
    own = training.ROOT / "cluster/batch/recipes.py"
    (tmp_path / "other.py").write_text(own.read_text() + "\n# newer\n")
    # Only the second host sees it: its mounts are its own.
    subprocess.run(net.inside(1, ["mount", "--bind", str(tmp_path / "other.py"), str(own)]), check=True)
    env = {**training.environment(), **{key: net.env[key] for key in ("PATH", "GLOO_SOCKET_IFNAME")}}
    code, text = videoar("preflight", "-c", str(config), "--hostfile", str(hostfile), "--json", env=env)
    row = next(row for row in json.loads(text.strip().splitlines()[-1])["findings"] if row["check"] == "hosts' code")
    assert code == 1 and not row["ok"] and all(address in row["found"] for address in net.addresses), row
    code, text = videoar("launch", "-c", str(config), "--hostfile", str(hostfile), env=env)
    assert code == 2 and "code" in text and "host-1" in text and "restart 1" not in text, text
    assert not (tmp_path / "run/checkpoints").exists() and [net.processes(0), net.processes(1)] == [[], []]
