import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.launch import ray_head
from cluster.launch.ray_head import RayError, RayHead, answers, ray_environment


@pytest.mark.system
def test_a_head_ends_with_its_killed_owner() -> None:
    code = (
        "import signal; from cluster.launch.ray_head import RayHead\n"
        "head = RayHead(cpus=1); head.start(); print(head._process.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        top = psutil.Process(int(owner.stdout.readline()))
        processes = [top, *top.children(recursive=True)]
        owner.kill()
    assert len(processes) > 5
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


@pytest.mark.system
def test_two_heads_live_side_by_side_and_leave_nothing_behind() -> None:
    with RayHead(cpus=1) as head:
        with RayHead(cpus=1) as second:
            assert second.dashboard != head.dashboard and second.address != head.address
            assert answers(f"{second.dashboard}/api/version")
            second._remember()
            processes, folder = list(second._known.values()), second._folder
            assert len(processes) > 5 and folder is not None and folder.is_dir()
        assert not [process for process in processes if process.is_running()]
        assert not folder.exists()
        assert answers(f"{head.dashboard}/api/version"), "the first head must not notice"


def test_a_head_that_dies_shows_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "ray"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("cluster.launch.ray_head.ray_program", lambda: str(broken))
    head = RayHead(cpus=1)
    with pytest.raises(RayError, match="ended with exit code 3 while starting; the end of its log: out of luck"):
        head.start()
    assert head._folder is None
    assert not [child for child in psutil.Process(os.getpid()).children() if str(broken) in child.cmdline()]


def test_its_environment_leads_to_no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("NO_PROXY", "example.org")
    env = ray_environment()
    assert "RAY_ADDRESS" not in env and env["NO_PROXY"] == env["no_proxy"] == "example.org,127.0.0.1,localhost"
    assert env["PATH"].startswith(str(Path(sys.executable).parent))


def test_folders_of_killed_owners_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    dead, alive = tmp_path / f"vray-{ended.pid}-x", tmp_path / f"vray-{os.getpid()}-x"
    dead.mkdir()
    alive.mkdir()
    monkeypatch.setattr(ray_head, "Path", lambda folder: tmp_path)
    ray_head.remove_leftovers()
    assert not dead.exists() and alive.exists()
