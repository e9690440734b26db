import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import Config, load
from cluster.hosts import ray_nodes
from cluster.hosts.hostfile import HostfileError
from cluster.hosts.roster import kill_command
from cluster.launch.launcher import (
    LaunchError,
    RunBusyError,
    TrainingJob,
    environment,
    run,
    run_lock,
    training_job,
)
from cluster.runtime.file_lock import hold_run
from cluster.supervise.run_state import mark_ended


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "job.yaml"
    mix = "mix: [{bucket: f005x32x32, batch: 2}]"
    path.write_text(
        f"run: {{dir: {tmp_path / 'run'}}}\ncurriculum: {{stages: [{{name: a, steps: 3, {mix}}}, {{name: b, steps: 4, {mix}}}]}}\n"
    )
    return load(path)


def test_local_command_is_the_deepspeed_launcher(config: Config) -> None:
    job = training_job(config, overrides=["train.clip=2"], devices=0)
    words = job.command(29_123)
    assert Path(words[0]).name == "deepspeed"
    assert words[1:5] == ["--hostfile", os.devnull, "--num_gpus", "1"]
    assert words[words.index("--master_port") + 1] == "29123"
    assert words[-5:] == ["--module", "pretrain.train", "-c", str(config.source), "train.clip=2"]


@pytest.mark.parametrize(("per_host", "devices", "ranks"), [(0, 0, 1), (0, 8, 8), (2, 0, 2), (4, 8, 4)])
def test_ranks_come_from_the_configuration_else_from_the_devices(
    config: Config, per_host: int, devices: int, ranks: int
) -> None:
    changed = load(config.source, [f"cluster.ranks_per_host={per_host}"])
    assert training_job(changed, devices=devices).ranks == ranks


def test_a_hostfile_is_checked_before_anything_starts(config: Config, tmp_path: Path) -> None:
    bad = tmp_path / "hosts"
    bad.write_text("a slots=1\na slots=1\n")
    with pytest.raises(HostfileError, match=f"^{bad}:2: host a is already on line"):
        training_job(config, hostfile=bad)
    bad.write_text("a slots=1\n")
    with pytest.raises(LaunchError, match=r"^cluster\.master_addr: `root@a` names a user"):
        training_job(load(config.source, ["cluster.master_addr=root@a"]), hostfile=bad)
    with pytest.raises(LaunchError, match="--via ssh needs --hostfile"):
        training_job(config, via="ssh")
    with pytest.raises(LaunchError, match="--via local takes no --hostfile"):
        training_job(config, via="local", hostfile=bad)
    with pytest.raises(LaunchError, match="--via ray takes no --hostfile"):
        training_job(config, via="ray", hostfile=bad)


def test_missing_ssh_is_said(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\nb slots=1\n")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LaunchError, match="needs `ssh` on this machine"):
        training_job(config, hostfile=hosts)


def test_several_hosts_are_started_over_ssh(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\nb slots=1\n")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    job = training_job(load(config.source, ["cluster.master_addr=10.0.0.1"]), hostfile=hosts)
    words = job.command(1234)
    at = words.index("--failed")
    assert words[at + 1] == str(tmp_path / "failed-host")
    del words[at : at + 2]
    at = words.index("--host-seconds")
    assert words[at + 1] == "20"
    del words[at : at + 2]
    assert words[1:9] == [
        "-m",
        "cluster.hosts.ssh_launcher",
        "--hostfile",
        str(hosts),
        "--master-port",
        "1234",
        "--master-addr",
        "10.0.0.1",
    ]
    assert words[9] == "--" and words[-4:] == ["--module", "pretrain.train", "-c", str(config.source)]
    assert [host.name for host in job.hosts] == ["a", "b"]


def test_through_ray_the_same_is_started_by_the_launcher_of_its_nodes(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_nodes, "join", lambda: None)
    monkeypatch.setattr(
        ray_nodes, "nodes", lambda: [ray_nodes.Node("a", "1", "10.0.0.1", 8.0, 0), ray_nodes.Node("b", "2", "10.0.0.2", 8.0, 0)]
    )
    job = training_job(load(config.source, ["cluster.ranks_per_host=2", "cluster.host_seconds=7"]), via="ray")
    words = job.command(1234)
    assert words[1:5] == ["-m", "cluster.hosts.ray_launcher", "--hostfile", str(tmp_path / "run/hostfile")]
    assert words[words.index("--host-seconds") + 1] == "7" and words[-4:] == [
        "--module",
        "pretrain.train",
        "-c",
        str(config.source),
    ]
    assert [(host.name, host.slots) for host in job.hosts] == [("a", 2), ("b", 2)]
    assert "the Ray cluster has 2 node(s) for ranks: a (2), b (2)" in capfd.readouterr().err


def test_a_launch_tells_the_ranks_what_they_need() -> None:
    env = environment(2, cpu=True)
    assert env["VIDEOAR_RESTARTS"] == "2" and env["DS_ACCELERATOR"] == "cpu"
    assert "DS_ACCELERATOR" not in environment(0, cpu=False)


def test_a_run_folder_takes_one_launch_at_a_time(tmp_path: Path) -> None:
    with (
        run_lock(tmp_path / "run"),
        pytest.raises(RunBusyError, match=rf"run: another launch is using this run folder \(.*process {os.getpid()} "),
        run_lock(tmp_path / "run"),
    ):
        pass
    with run_lock(tmp_path / "run"):
        pass


def test_a_job_without_a_launch_is_named_and_its_folder_is_left_to_it(config: Config, tmp_path: Path) -> None:
    """Who owns a run is who holds RUN/run.lock, from whatever configuration; no process is named that was not seen to hold it."""
    folder = tmp_path / "run"
    copied = tmp_path / "copy.yaml"
    copied.write_text(config.source.read_text())
    stop = re.escape(f"`touch {folder / 'stop'}` lets it write a checkpoint and end")
    with hold_run(folder), pytest.raises(RunBusyError, match=rf"is using this run folder \(.*process {os.getpid()} .*{stop}"):
        run(load(copied), training_job(load(copied), devices=0))
    other = load(config.source, [f"run.dir={tmp_path / 'other'}"])
    with hold_run(folder):
        assert run(other, TrainingJobThatEnds("none", (), 1)) == 2, (
            "the same configuration file with another run.dir is another run"
        )


def test_the_status_of_a_job_that_was_killed_is_no_longer_running(config: Config, tmp_path: Path) -> None:
    status = tmp_path / "run" / "status.json"
    status.parent.mkdir()
    status.write_text('{"state": "running", "step": 4, "steps": 20, "line": ""}')
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 11}\n{"step": 12}\n')
    with hold_run(tmp_path / "run"):
        mark_ended(tmp_path / "run", 137)
    assert json.loads(status.read_text())["state"] == "running", "its rank 0 lives"
    assert run(config, TrainingJobThatEnds("none", (), 1)) == 2
    found = json.loads(status.read_text())
    assert (found["state"], found["step"], found["line"]) == ("failed", 12, "exit code 2")


class TrainingJobThatEnds(TrainingJob):
    def command(self, port: int) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit(2)"]


def test_the_kill_command_meets_the_processes_of_one_launch(tmp_path: Path) -> None:
    """Two jobs with the same command line: only the environment tells them apart."""
    words = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    both = [
        subprocess.Popen(words, env={**os.environ, **environment(0, cpu=True, launch=token)}, stdout=subprocess.PIPE)
        for token in ("feed", "beef")
    ]
    try:
        for process in both:
            assert process.stdout is not None and process.stdout.readline()
        subprocess.run(["sh", "-c", kill_command("feed")], check=True)
        assert both[0].wait(timeout=30) == -signal.SIGKILL and both[1].poll() is None
    finally:
        for process in both:
            process.kill()
            process.communicate()


RANK = """
import os, signal, sys
rank, restarts = int(os.environ["RANK"]), os.environ["VIDEOAR_RESTARTS"]
if os.environ["ACT"] == "crash":
    if restarts == "0" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"rank {rank} of {os.environ['WORLD_SIZE']} after {restarts} restarts, {sys.argv[1:]}", flush=True)
else:
    def save(number, frame):
        os.write(1, f"rank {rank} saved\\n".encode())
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    os.write(1, b"ready\\n")  # one write: two ranks share the pipe
    while True:
        signal.pause()
"""
DRIVER = """
import sys
from cluster.config import load
from cluster.launch.launcher import run, training_job
config = load(sys.argv[1], ["cluster.ranks_per_host=2", "cluster.restart_wait_seconds=0"])
sys.exit(run(config, training_job(config, "fake_rank")))
"""


@pytest.mark.system
@pytest.mark.parametrize("act", ["crash", "stop"])
def test_the_real_launcher_is_supervised(config: Config, tmp_path: Path, act: str) -> None:
    (tmp_path / "fake_rank.py").write_text(RANK)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "ACT": act, "DS_ACCELERATOR": "cpu"}
    words = [sys.executable, "-c", DRIVER, str(config.source)]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launch:
        assert launch.stdout is not None
        lines = []
        for line in launch.stdout:
            lines.append(line)
            if line == "ready\n" and lines.count(line) == 2:
                launch.send_signal(signal.SIGTERM)
    text = "".join(lines)
    if act == "crash":
        assert launch.returncode == 0, text
        assert "exit code 247 (SIGKILL); restart 1 of 3" in text
        for rank in (0, 1):
            assert f"rank {rank} of 2 after 1 restarts, ['-c', '{config.source}']" in text
    else:
        assert launch.returncode == 75, text
        assert "rank 0 saved" in text and "rank 1 saved" in text


SSH = """#!/bin/sh
# Hosts a and b are this machine; b is cut off while a file says so.
while [ $# -gt 2 ]; do shift; done
[ -e "$DOWN-$1" ] && exit 255
exec sh -c "$2"
"""
HOST_RANK = """
import os, sys, time
from pathlib import Path
run = Path(os.environ["VIDEOAR_RUN"])
os.write(1, f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}\\n".encode())
if os.environ["WORLD_SIZE"] == "2":
    sys.exit(0)
while not (run / "stop").exists():
    time.sleep(0.05)
(run / "stop").unlink()
sys.exit(75)
"""
HOST_DRIVER = """
import sys
from pathlib import Path
from cluster.config import load
from cluster.launch.launcher import run, training_job
config = load(sys.argv[1], ["cluster.master_addr=127.0.0.1", "cluster.host_ask_seconds=0.3"])
sys.exit(run(config, training_job(config, "fake_rank", hostfile=Path(sys.argv[2]))))
"""


@pytest.mark.system
def test_a_host_that_is_cut_off_is_left_out_and_taken_back(config: Config, tmp_path: Path) -> None:
    (tmp_path / "fake_rank.py").write_text(HOST_RANK)
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    (tmp_path / "down-b").touch()
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "DS_ACCELERATOR": "cpu", "DOWN": str(tmp_path / "down")}
    env |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VIDEOAR_RUN": str(tmp_path / "run")}
    words = [sys.executable, "-c", HOST_DRIVER, str(config.source), str(tmp_path / "hosts")]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launch:
        assert launch.stdout is not None
        lines = []
        for line in launch.stdout:
            lines.append(line)
            if line.endswith("rank 0 of 1\n"):
                (tmp_path / "down-b").unlink()
    text = "".join(lines)
    assert launch.returncode == 0, text
    assert "going on with 1 of 2 hosts, without b: exit code 255" in text and "[a] rank 0 of 1" in text
    assert "b answers again: the job writes a checkpoint and is started again" in text
    assert "[a] rank 0 of 2" in text and "[b] rank 1 of 2" in text
    assert "[ERROR]" not in text and text.count("[launch] ") == 4, text
