"""The planning task: its part file, and what it must not import."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline.config import PipelineConfig
from pipeline.records import SourceVideo
from pipeline.shards.manifest import Manifest
from pipeline.workers import plan_task


@pytest.fixture
def cluster() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    ray.init(num_cpus=1, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.system
def test_a_task_that_wakes_up_late_writes_nothing_into_another_generation(clips: Path, tmp_path: Path, cluster: None) -> None:
    config, manifest = PipelineConfig(output=tmp_path), Manifest(tmp_path)
    video = SourceVideo(str(clips / "carphone_distorted.mp4"))
    manifest.begin_generation([video])
    part = manifest.part(0).absolute()
    stamp = plan_task.generation_stamp(part)
    task = plan_task.plan_part
    manifest.begin_generation([video])  # the next one
    assert ray.get(task.remote(0, config, part, Path.cwd(), {}, stamp))[0] == 1 and not part.exists()
    assert ray.get(task.remote(0, config, part, Path.cwd(), {}, plan_task.generation_stamp(part)))[0] == 1 and part.exists()


def test_a_planning_worker_does_not_import_torch(root: Path) -> None:
    """Its start would take longer than planning a video does."""
    code = "import sys, pipeline.workers.plan_task; print(sorted({'torch', 'deepspeed'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


def test_a_worker_enters_the_folder_of_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "driver").mkdir()
    plan_task.enter_folder(tmp_path / "driver")
    assert Path.cwd() == tmp_path / "driver"
    plan_task.enter_folder(tmp_path / "absent")
    assert Path.cwd() == tmp_path / "driver", "a host without that folder stays where it is"
