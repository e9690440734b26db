import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.launch.ray_head import RayError, RayHead, answers
from cluster.launch.ray_submit import submit

JOB = """
import os, sys, ray
ray.init(logging_level="ERROR")
print("cpus", ray.cluster_resources()["CPU"], "task", ray.get(ray.remote(lambda: 6 * 7).remote()), flush=True)
print("in", os.getcwd(), "with", os.environ["VIDEOAR_TEST"], flush=True)
sys.exit(7)
"""
SUBMIT = """
import sys
from cluster.ray_submit import submit
code = "import time, signal; print('job runs', flush=True); signal.pause()"
sys.exit(submit([sys.executable, "-c", code], sys.argv[1], client={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": sys.argv[2]}))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with RayHead(cpus=1) as head:
        yield head


@pytest.mark.system
def test_a_job_runs_where_it_is_told_and_its_exit_code_comes_back(
    head: RayHead, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = submit(
        [sys.executable, "-c", JOB], head.dashboard, folder=tmp_path, env={"VIDEOAR_TEST": "a b"}, client=head.environment
    )
    text = capfd.readouterr().out
    assert code == 7, text
    assert "cpus 1.0 task 42" in text
    assert f"in {tmp_path} with a b" in text


@pytest.mark.system
def test_a_client_without_the_token_is_refused(head: RayHead) -> None:
    stranger = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    assert submit(["true"], head.dashboard, client=stranger) != 0


@pytest.mark.system
def test_sigterm_stops_the_job(head: RayHead) -> None:
    words = [sys.executable, "-c", SUBMIT, head.dashboard, head.environment["RAY_AUTH_TOKEN"]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "job runs\n":
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 75, "".join(lines)


@pytest.mark.system
def test_a_head_ends_with_its_killed_owner() -> None:
    code = "from cluster.launch.ray_head import RayHead; import signal; h = RayHead(cpus=1); h.start(); print(h._process.pid, flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        top = psutil.Process(int(owner.stdout.readline()))
        processes = [top, *top.children(recursive=True)]
        owner.kill()
    assert len(processes) > 5
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


@pytest.mark.system
def test_two_heads_live_side_by_side_and_leave_nothing_behind(head: RayHead) -> None:
    with RayHead(cpus=1) as second:
        assert second.dashboard != head.dashboard and second.address != head.address
        assert answers(f"{second.dashboard}/api/version")
        second._remember()
        processes, folder = list(second._known.values()), second._folder
        assert len(processes) > 5 and folder is not None and folder.is_dir()
    assert not [process for process in processes if process.is_running()]
    assert not folder.exists()
    assert answers(f"{head.dashboard}/api/version"), "the first head must not notice"


def test_no_cluster_at_the_address_is_one_clear_line() -> None:
    with pytest.raises(RayError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9"):
        submit(["true"], "http://127.0.0.1:9")


def test_a_head_that_dies_says_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "ray"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("cluster.launch.ray_head.ray_program", lambda: str(broken))
    head = RayHead(cpus=1)
    with pytest.raises(RayError, match="ended with exit code 3 while starting; its last words: out of luck"):
        head.start()
    assert head._folder is None
    assert not [child for child in psutil.Process(os.getpid()).children() if str(broken) in child.cmdline()]
