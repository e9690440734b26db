"""A planning task that hangs outside of its decoding child: found by its heartbeat, tried again, its video quarantined."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from cluster.metrics import Meter
from pipeline.config import DecodeLimits, PipelineConfig
from pipeline.records import Bucket, SourceVideo
from pipeline.shards.layout import PLAN
from pipeline.shards.manifest import Manifest
from pipeline.video import DeviceError
from pipeline.workers import plan_driver
from tests.helpers.plans import outcomes

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    ray.init(num_cpus=1, num_gpus=1, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def freeze(heartbeat: Path, found: list[psutil.Process]) -> None:
    """Suspend our planning worker when it is at the second video, as a host in trouble would."""
    while not (heartbeat.exists() and heartbeat.read_text().startswith("1 ")):
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::plan" in " ".join(process.cmdline()):
                process.suspend()
                found.append(process)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_video_that_planning_hangs_over_is_quarantined_alone(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], frozen: bool
) -> None:
    """A server takes the connection and never answers, so copying the video waits: no child's limit binds that.

    frozen: the first time the whole worker stands still beside; on this cluster of one CPU it must be gone before another begins.
    """
    monkeypatch.setattr(plan_driver, "POLL_SECONDS", 1.0)
    config = PipelineConfig(
        output=tmp_path,
        buckets=(Bucket(frames=5, height=32, width=32),),
        limits=DecodeLimits(attempts=2),
        stall_seconds=12,
        min_free_gb=0,
    )
    manifest, meter = Manifest(tmp_path), Meter()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        names = [
            str(clips / "carphone_pristine.mp4"),
            f"http://127.0.0.1:{silent.getsockname()[1]}/video.mp4",
            str(clips / "bikes.mp4"),
        ]
        generation = manifest.begin_generation([SourceVideo(name) for name in names])
        suspended: list[psutil.Process] = []
        if frozen:
            threading.Thread(target=freeze, args=(plan_driver.heartbeat_path(manifest.part(0)), suspended), daemon=True).start()
        plan_driver.plan_videos(generation, config, manifest, meter)
    assert len(suspended) == frozen and psutil.wait_procs(suspended, timeout=30)[1] == [], "the frozen worker is gone"
    assert capfd.readouterr().out.count(f"no progress for pipeline.stall_seconds = 12 s over {names[1]}") == 2
    (reject,) = [r for r in manifest.rejects() if r.reason != "too_short"]
    assert (reject.source, reject.stage, reject.reason) == (names[1], "probe", "stalled")
    assert "quarantined after 2 attempts" in reject.detail
    assert {clip.source for group in range(manifest.groups()) for clip in manifest.clips(group)} == {names[0], names[2]}
    assert outcomes(manifest) == (2, 1) and manifest.quarantined()[0] == {names[1]}, "--retry takes it up again"
    assert meter.registry.get_sample_value("videoar_pipeline_retries_total", {"stage": "plan"}) == 2
    assert not (tmp_path / PLAN).exists()


def test_a_card_that_is_not_there_stops_the_job_and_refuses_no_video(clips: Path, tmp_path: Path) -> None:
    """Ray is told of a card that nobody can open; a corpus must not be quarantined for that."""
    config = PipelineConfig(output=tmp_path, decode_device="cuda:63", gpus_per_worker=0.5, min_free_gb=0)
    manifest = Manifest(tmp_path)
    generation = manifest.begin_generation([SourceVideo(str(clips / "bikes.mp4"))])
    with pytest.raises(DeviceError, match=r"pipeline\.decode_device: cannot open cuda:63 .* set pipeline\.decode_device=cpu"):
        plan_driver.plan_videos(generation, config, manifest, Meter())
    assert manifest.rejects() == [] and manifest.groups() == 0 and manifest.generation() == generation, (
        "running again continues"
    )
