"""`videoar submit` to a Ray cluster of two hosts, one of which dies in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.launch.ray_head import RayHead
from pipeline.maintenance import verify
from tests.helpers.fakes import tiny_tokenizer
from tests.helpers.ray_hosts import SecondHost, second_host
from tests.helpers.training import ROOT

pytestmark = pytest.mark.system
PATIENCE = 600.0


def write_config(folder: Path, clips: Path) -> None:
    """A small job, its paths relative to the folder."""
    (folder / "videos").mkdir(parents=True)
    for name in ("bigbuckbunny", "bikes", "carphone_distorted", "carphone_pristine"):
        (folder / "videos" / f"{name}.mp4").symlink_to(clips / f"{name}.mp4")
    tiny_tokenizer(folder / "tiny")
    plain = {
        "corpus": {"videos": ["videos"]},
        "tokenizer": {"weights": "tiny"},
        "pipeline": {
            "output": "shards", "buckets": [{"frames": f, "height": s, "width": s} for f, s in ((5, 32), (9, 64))],
            "clips_per_shard": 1, "batch": 1, "videos_per_task": 1, "dtype": "float32", "min_free_gb": 0, "workers": 2,
        },
        "metrics": {"port": 0},
    }  # fmt: skip
    (folder / "corpus.yaml").write_text(yaml.safe_dump(plain))


def submit(folder: Path, head: RayHead, *overrides: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "cluster.cli.main", "submit", "-c", "corpus.yaml", "--address", head.dashboard, *overrides]
    env = {**os.environ, **head.environment, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def encodes(host: SecondHost) -> bool:
    """Whether an encoding worker of the host is at a group (Ray names a process after its task)."""
    for process in host.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::encode group" in " ".join(process.cmdline()):
                return True
    return False


def until(job: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Wait for something that a job does."""
    end = time.monotonic() + PATIENCE
    while not ready():
        assert job.poll() is None and time.monotonic() < end, job.stdout.read() if job.stdout else ""
        time.sleep(0.05)


def test_a_host_that_dies_in_the_middle_changes_no_byte(tmp_path: Path, clips: Path) -> None:
    write_config(tmp_path / "job", clips)
    shards = tmp_path / "job/shards"
    with RayHead(cpus=1) as head:
        with second_host(head) as host:
            job = submit(tmp_path / "job", head)
            until(job, lambda: encodes(host) and bool(list(shards.glob("*/shard-*.parquet"))))
            host.die()
            text, _ = job.communicate(timeout=PATIENCE)
        assert job.returncode == 0, text
        assert "died" in text and "a new one takes over" in text, text
        report = verify.verify(shards)
        assert report.sound and report.encoded
        alone = submit(tmp_path / "job", head, "pipeline.output=alone", "pipeline.workers=1")
        until(alone, lambda: bool(list((tmp_path / "job/alone").glob("*/shard-*.parquet"))))
        alone.send_signal(signal.SIGTERM)
        said, _ = alone.communicate(timeout=PATIENCE)
        assert alone.returncode == 75 and f"kept in {tmp_path}/job/alone; run the same command to go on" in said, said
        assert "was stopped; what it has finished is kept" in said and "Traceback" not in said, said
        alone = submit(tmp_path / "job", head, "pipeline.output=alone", "pipeline.workers=1")
        said, _ = alone.communicate(timeout=PATIENCE)
        assert alone.returncode == 0, said
    assert verify.digest(shards) == verify.digest(tmp_path / "job/alone")
