"""Where Ray cannot be had, the job ends with one line that says what to do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import PipelineConfig
from pipeline.job import ray_session
from pipeline.workers.errors import JobError
from tests.helpers.fakes import tiny_tokenizer


@pytest.mark.system
def test_an_address_where_nobody_listens_ends_the_job_with_one_line(tmp_path: Path, clips: Path) -> None:
    """Through the program, as a user meets it."""
    config = tmp_path / "config.yaml"
    plain = {
        "corpus": {"videos": [str(clips / "bikes.mp4")]},
        "tokenizer": {"weights": str(tiny_tokenizer(tmp_path / "tiny"))},
        "pipeline": {
            "output": str(tmp_path / "shards"),
            "buckets": [{"frames": 5, "height": 32, "width": 32}],
            "min_free_gb": 0,
        },
        "metrics": {"port": 0},
    }
    config.write_text(json.dumps(plain))
    with socket.socket() as taken:  # bound and never listening: nobody else can get the port
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "cluster.cli.main", "tokenize", "-c", str(config)]
        began = time.monotonic()
        job = subprocess.run(
            command, env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=240, check=False
        )
    assert job.returncode == 1 and "Traceback" not in job.stderr, job.stderr
    (line,) = job.stderr.strip().splitlines()
    assert f"cannot join the Ray cluster at RAY_ADDRESS={address}: nothing answers there" in line, line
    assert "`ray start --head`" in line and "unset it" in line
    assert time.monotonic() - began < 120, "Ray alone would try for minutes"
    assert not (tmp_path / "shards" / "index").exists()


@pytest.mark.parametrize("kind", [Exception, RuntimeError, ConnectionError, TimeoutError])
def test_servers_that_do_not_come_up(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise kind("The current node timed out during startup.\nmore lines")

    monkeypatch.setattr(ray_session.ray, "init", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = r"did not start on this machine: The current node timed out during startup\.; .*RAY_raylet_start_wait_time_s"
    with pytest.raises(JobError, match=words), ray_session.session(PipelineConfig()):
        pytest.fail("there is no Ray")
    with socket.create_server(("127.0.0.1", 0)) as server:  # someone listens, but it is no Ray
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{server.getsockname()[1]}")
        with (
            pytest.raises(JobError, match="cannot join the Ray cluster at RAY_ADDRESS=ray://"),
            ray_session.session(PipelineConfig()),
        ):
            pytest.fail("there is no Ray")


def test_a_card_that_ray_does_not_have(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its workers would wait for ever: an error on this machine, a line on a cluster, which may grow."""
    look, cards = ray_session._check_gpus, {"CPU": 2.0}
    monkeypatch.setattr(ray_session.ray, "cluster_resources", lambda: cards)
    look(PipelineConfig(), joined=False)
    config = PipelineConfig(decode_device="cuda", gpus_per_worker=0.5)
    with pytest.raises(
        JobError, match=r"no GPU on this machine, and pipeline\.gpus_per_worker=0\.5, pipeline\.decode_device=cuda"
    ):
        look(config, joined=False)
    look(config, joined=True)
    assert "the cluster has no GPU yet; the job waits for one" in capsys.readouterr().out
    cards["GPU"] = 1.0
    look(config, joined=False)


@pytest.mark.parametrize("folder", ["working_dir_files/_ray_pkg_1a2b", "r/_ray_pkg_1a2b/deeper"])
def test_an_output_in_rays_copy_of_the_working_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    with pytest.raises(JobError, match=r"pipeline\.output: shards is /.*, in the copy .* give an absolute path"):
        ray_session.resolved_output(Path("shards"))
    assert ray_session.resolved_output(tmp_path / "shards") == tmp_path / "shards"
    monkeypatch.chdir(tmp_path)
    assert ray_session.resolved_output(Path("a/../shards")) == tmp_path / "shards"


def test_a_submitted_job_takes_no_paths_of_a_folder_that_ray_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").touch()
    ray_session.check_config(Path("missing.yaml"))  # not submitted: the loader says that it is missing
    monkeypatch.setenv(ray_session.SUBMITTED, "{}")
    with pytest.raises(JobError, match=rf"pipeline\.output: shards is relative, .* \({tmp_path}\); give an absolute path"):
        ray_session.resolved_output(Path("shards"))
    with pytest.raises(JobError, match=rf"missing\.yaml: not in {tmp_path}, where Ray runs this job; .*`videoar submit`"):
        ray_session.check_config(Path("missing.yaml"))
    ray_session.check_config(Path("there.yaml"))
    assert ray_session.resolved_output(tmp_path / "shards") == tmp_path / "shards"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_says_how_to_go_on(capfd: pytest.CaptureFixture[str], number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped, ray_session.stoppable(Path("/shared/shards")):
        os.kill(os.getpid(), number)
        signal.pause()
    assert stopped.value.code == 75 and signal.getsignal(number) is before
    assert "finished shards are kept in /shared/shards; run the same command to go on" in capfd.readouterr().out


def test_a_dashboards_address_is_not_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    words = r"RAY_ADDRESS=http://head:8265 is a dashboard's address.*videoar submit --address http://head:8265.*RAY_ADDRESS=HOST:6379"
    with pytest.raises(JobError, match=words), ray_session.session(PipelineConfig()):
        pass
