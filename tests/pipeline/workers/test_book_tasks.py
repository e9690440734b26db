"""Steps of a merge on Ray: results in order, a killed task submitted again, an error of the work raised as it is."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster.runtime.atomic_files import DiskFull
from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.config import PipelineConfig
from pipeline.records import SourceVideo
from pipeline.shards.manifest import Manifest
from pipeline.workers.book_tasks import on_ray
from pipeline.workers.errors import JobError
from tests.helpers.plans import plan

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def once_killed(folder: Path, number: int) -> int:
    """Work that dies with its worker at the first try of an odd number."""
    mark = folder / str(number)
    if number % 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def full(number: int) -> int:
    raise DiskFull(f"the disk is full at {number}; free some space and run again")


def always_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_steps_survive_the_death_of_workers_and_say_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = list(on_ray("squares", once_killed, [(tmp_path, number) for number in range(5)]))
    assert found == [0, 1, 4, 9, 16]
    assert "squares 3: its task died" in capfd.readouterr().out
    with pytest.raises(DiskFull, match=r"full at 0; free some space"):
        list(on_ray("full", full, [(0,), (1,)]))
    with pytest.raises(JobError, match=r"dead 0: its task died 3 times .* then run again"):
        list(on_ray("dead", always_killed, [()]))
    plans = [plan(f"v{number}", [number]) for number in range(7)] + [plan("copy", [1], digest=plan("v1", []).digest)]
    made = []
    for name, run in (("ray", [on_ray]), ("here", [])):
        manifest = Manifest(tmp_path / name)
        generation = manifest.begin_generation([SourceVideo(each.source) for each in plans])
        for at in range(2):
            write_part(manifest.part(at), plans[4 * at : 4 * at + 4])
        merge(manifest, generation, PipelineConfig(clips_per_shard=3, videos_per_task=4, min_free_gb=0), 2, *run)
        made.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*.parquet")})
    assert made[0] == made[1] and len(made[0]) == 2
