import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.launch.ray_head import RayError, RayHead
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
from cluster.launch.ray_submit import submit
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


def test_no_cluster_at_the_address_is_one_clear_line() -> None:
    with pytest.raises(RayError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9"):
        submit(["true"], "http://127.0.0.1:9")
