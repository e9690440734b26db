"""The whole job on real Ray, with a tiny real tokenizer. One Ray serves the module; kills run in processes of their own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Set
from pathlib import Path

import psutil
import pytest
import ray
import torch

from cluster.config import ConfigError, load
from cluster.metrics import Meter
from cluster.runtime.atomic_files import DiskFull
from pipeline.corpus.listing import CorpusError
from pipeline.job import tokenize
from pipeline.job.dataset_json import ConfigChanged
from pipeline.maintenance import inspect, verify
from pipeline.records import Bucket
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import FolderLock, Locked
from pipeline.shards.manifest import Manifest
from tests.helpers.fakes import tiny_tokenizer
from tests.helpers.plans import outcomes
from tokenizer.codec import CodecError, VideoCodec

pytestmark = pytest.mark.system

FIRST, SECOND = Bucket(frames=5, height=32, width=32), Bucket(frames=9, height=32, width=48)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """Three real videos, one copy, one text that calls itself a video, one empty file."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("bikes", "carphone_distorted", "carphone_pristine"):
        (folder / f"{name}.mp4").symlink_to(clips / f"{name}.mp4")
    (folder / "copy-of-bikes.mp4").symlink_to(clips / "bikes.mp4")
    (folder / "broken.mp4").write_text("no video " * 200)
    (folder / "empty.mp4").touch()
    (folder / "bikes.txt").write_text("people ride bicycles\n")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def write_config(folder: Path, corpus: Path, weights: Path) -> Path:
    path = folder / "config.yaml"
    plain = {
        "corpus": {"videos": [str(corpus)]},
        "tokenizer": {"weights": str(weights)},
        "pipeline": {
            "output": str(folder / "shards"),
            "buckets": [FIRST.model_dump(), SECOND.model_dump()],
            "clips_per_shard": 4,
            "batch": 2,
            "videos_per_task": 2,
            "dtype": "float32",
            "min_free_gb": 0,
        },
        "metrics": {"port": 0},
    }
    path.write_text(json.dumps(plain))
    return path


@pytest.fixture
def config(tmp_path: Path, corpus: Path, weights: Path) -> Path:
    return write_config(tmp_path, corpus, weights)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path, weights: Path, cluster: None) -> tokenize.Summary:
    """What one worker makes when nobody disturbs it."""
    return tokenize.tokenize(load(write_config(tmp_path_factory.mktemp("first"), corpus, weights)))


def test_every_video_has_one_outcome(undisturbed: tokenize.Summary) -> None:
    assert undisturbed.videos == 6 and undisturbed.videos_used == 3 and undisturbed.clips == undisturbed.encoded
    assert undisturbed.rejects == {"empty_file": 1, "exact_copy": 1, "too_short": 1, "unreadable": 1}
    assert undisturbed.shards == undisturbed.new_shards > 4


def test_two_workers_give_the_same_digest(
    undisturbed: tokenize.Summary, config: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tokenize.tokenize(load(config, ["pipeline.workers=2"]))
    assert summary.digest == undisturbed.digest == verify.digest(tmp_path / "shards")
    report = verify.verify(tmp_path / "shards")
    assert report.sound and (report.encoded, report.videos_used) == (summary.encoded, 3)
    dataset = ShardDataset.open(tmp_path / "shards")
    assert dataset.buckets() == [FIRST, SECOND]
    captions = {row["source"].rsplit("/", 1)[-1]: row["caption"] for row in dataset.rows(FIRST).to_pylist()}
    assert captions["bikes.mp4"] == "people ride bicycles" and captions["carphone_pristine.mp4"] == ""
    sample = dataset.read(SECOND, 0)
    frames = VideoCodec.load(weights).decode(torch.frombuffer(bytearray(sample.bits), dtype=torch.uint8)[None], 32, 48)
    assert frames.shape == (1, 9, 32, 48, 3)
    grid = inspect.show(tmp_path / "shards", weights, tmp_path / "grid.mp4", count=4)
    assert grid.stat().st_size > 0

    with monkeypatch.context() as patch:
        patch.setattr(tokenize.ray_session, "session", lambda _: pytest.fail("a finished folder needs no Ray"))
        again = tokenize.tokenize(load(config, ["pipeline.workers=1"]))
    assert (again.digest, again.new_shards) == (summary.digest, 0), "running again finds nothing to do"
    meter = Meter()
    assert tokenize.encode_groups(load(config), Manifest(tmp_path / "shards"), meter).new_shards == 0
    counted = {name: meter.registry.get_sample_value(f"videoar_pipeline_{name}_total") for name in ("tokens", "frames")}
    assert counted == {"tokens": summary.tokens, "frames": summary.frames}, "series go on where an earlier run stopped"
    videos = [meter.registry.get_sample_value("videoar_pipeline_videos_total", {"outcome": o}) for o in ("planned", "refused")]
    assert videos == [3, 3]

    tars = sorted((tmp_path / "shards").glob("*/*.tar"))
    tars[1].with_suffix(".parquet").unlink()
    mended = tokenize.tokenize(load(config))
    assert mended.digest == summary.digest and mended.new_shards == 1

    whole = {path: path.read_bytes() for path in tars}
    stamp = tars[0].stat().st_mtime_ns
    tars[1].write_bytes(whole[tars[1]][:600] + b"?" + whole[tars[1]][601:])
    tars[2].unlink()
    assert tokenize.tokenize(load(config)).new_shards == 0, "resuming trusts commit records; damage is for verify and --repair"
    assert len(verify.verify(tmp_path / "shards").damaged) == 2
    repaired = tokenize.tokenize(load(config), repair=True)
    assert (repaired.new_shards, repaired.digest) == (2, summary.digest)
    assert {path: path.read_bytes() for path in tars} == whole and tars[0].stat().st_mtime_ns == stamp
    assert tokenize.tokenize(load(config), retry=True).digest == summary.digest, (
        "a broken file that is still broken changes nothing"
    )


def test_new_videos_are_appended(config: Path, tmp_path: Path, corpus: Path, cluster: None, clips: Path) -> None:
    own = tmp_path / "corpus"
    own.mkdir()
    (own / "a.mp4").symlink_to(clips / "carphone_pristine.mp4")
    first = tokenize.tokenize(load(config, [f"corpus.videos=[{own}]"]))
    before = {path: path.read_bytes() for path in (tmp_path / "shards").glob("*/shard-*")}
    (own / "b.mp4").symlink_to(clips / "bikes.mp4")
    second = tokenize.tokenize(load(config, [f"corpus.videos=[{own}]"]))
    assert second.videos == 2 and second.encoded > first.encoded and second.digest != first.digest
    assert all(path.read_bytes() == data for path, data in before.items()), "shards of the first job are untouched"
    assert verify.verify(tmp_path / "shards").sound


def test_a_changed_configuration_is_refused(config: Path, tmp_path: Path, cluster: None, clips: Path) -> None:
    only = [f"corpus.videos=[{clips / 'carphone_distorted.mp4'}]"]
    tokenize.tokenize(load(config, only))
    with pytest.raises(ConfigChanged, match=r"pipeline\.filters\.min_luma: 8\.0 -> 9\.0"):
        tokenize.tokenize(load(config, [*only, "pipeline.filters.min_luma=9"]))
    assert tokenize.tokenize(load(config, [*only, "pipeline.workers=2", "pipeline.limits.seconds=77"])).new_shards == 0
    record = tmp_path / "shards" / "dataset.json"
    plain = json.loads(record.read_text())
    assert plain["not_default"] == ["pipeline.batch", "pipeline.buckets", "pipeline.clips_per_shard"]
    del plain["pipeline"]["near_dedup"], plain["pipeline"]["cuts"]["margin"], plain["not_default"]
    record.write_text(json.dumps(plain))
    assert tokenize.tokenize(load(config, only)).new_shards == 0, "a folder begun before these keys existed"
    with pytest.raises(ConfigChanged, match=r"pipeline\.near_dedup: 0\.0 -> 0\.9"):
        tokenize.tokenize(load(config, [*only, "pipeline.near_dedup=0.9"]))


def test_user_errors_are_one_line(config: Path, tmp_path: Path, weights: Path, cluster: None) -> None:
    with pytest.raises(CodecError, match="no tokenizer there"):
        tokenize.tokenize(load(config, [f"tokenizer.weights={tmp_path / 'none'}"]))
    with pytest.raises(tokenize.JobError, match=r"pipeline\.buckets: f004x32x32 does not fit the tokenizer"):
        tokenize.tokenize(load(config, ["pipeline.buckets=[{frames: 4, height: 32, width: 32}]"]))
    (tmp_path / "void").mkdir()
    with pytest.raises(CorpusError, match="holds no video"):
        tokenize.tokenize(load(config, [f"corpus.videos=[{tmp_path / 'void'}]"]))
    with FolderLock(tmp_path / "shards"), pytest.raises(Locked, match="held by"):
        tokenize.tokenize(load(config))
    with pytest.raises(ConfigError):
        load(config, ["pipeline.workers=0"])


def test_a_full_disk_stops_the_job_and_running_again_goes_on(config: Path, tmp_path: Path, cluster: None, clips: Path) -> None:
    only = [f"corpus.videos=[{clips / 'carphone_distorted.mp4'}]"]
    with pytest.raises(DiskFull, match="free some space and run again"):
        tokenize.tokenize(load(config, [*only, "pipeline.min_free_gb=1000000000"]))
    assert tokenize.tokenize(load(config, only)).encoded > 0


RUN = "import sys; from cluster.config import load; from pipeline.job.tokenize import tokenize; tokenize(load(sys.argv[1], sys.argv[2:]))"


def bound_by_permissions() -> None:
    """Take from root, before a program starts, what lets it read files without permission; others cannot anyway."""
    if os.geteuid() == 0:
        drop, override, search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        library = ctypes.CDLL(None)
        assert library.prctl(drop, override, 0, 0, 0) == 0 and library.prctl(drop, search, 0, 0, 0) == 0


def test_videos_without_permission_are_refused_and_the_job_goes_on(
    config: Path, tmp_path: Path, clips: Path, weights: Path
) -> None:
    """Of a video, and of the caption beside one. With permission and `--retry` both come in."""
    own = tmp_path / "corpus"
    own.mkdir()
    for name in ("bikes", "carphone_distorted", "carphone_pristine"):
        shutil.copy(clips / f"{name}.mp4", own / f"{name}.mp4")
    (own / "carphone_distorted.txt").write_text("a caption\n")
    locked = (own / "bikes.mp4", own / "carphone_distorted.txt")
    for path in locked:
        path.chmod(0)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "cluster.cli.main", "tokenize", "-c", str(config), f"corpus.videos=[{own}]"]
    job = subprocess.run(
        command, env=environment, preexec_fn=bound_by_permissions, capture_output=True, text=True, timeout=240, check=False
    )
    assert job.returncode == 0, job.stdout + job.stderr
    manifest = Manifest(tmp_path / "shards")
    rejects = [r for r in manifest.rejects() if r.reason != "too_short"]
    assert [(Path(r.source).name, r.stage, r.reason) for r in sorted(rejects, key=lambda r: r.source)] == [
        ("bikes.mp4", "probe", "no_permission"),
        ("carphone_distorted.mp4", "probe", "no_permission"),
    ]
    assert outcomes(manifest) == (1, 2) and verify.verify(tmp_path / "shards").sound
    for path in locked:
        path.chmod(0o644)
    job = subprocess.run([*command, "--retry"], env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    assert outcomes(manifest) == (3, 0) and verify.verify(tmp_path / "shards").sound


@contextlib.contextmanager
def job_of(config: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """The job in a process of its own, with a Ray of its own, as a user starts it; killed with SIGKILL on leaving."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-u", "-c", RUN, str(config), *overrides]
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        family: dict[psutil.Process, str] = {}
        try:
            yield job
            if job.poll() is None:
                for process in psutil.Process(job.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):  # one that ends by itself just now
                        family[process] = process.name()
        finally:
            job.kill()
            job.communicate()
    # Ray's own agents (in 2.60) outlive for a while a raylet that is killed together with its driver.
    ours = [process for process, name in family.items() if "Agent" not in name]
    for process in set(family) - set(ours):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(ours, timeout=30)
    assert not alive, f"processes outlive their driver: {alive}"


def wait_for(job: subprocess.Popen[str], path: Path, pattern: str) -> None:
    """Wait until the job has made a file (polled between checks that the job still lives)."""
    while not list(path.glob(pattern)):
        assert job.poll() is None, job.stdout.read() if job.stdout else ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(timeout=0.05)


def command_of(process: psutil.Process) -> str:
    """Command line of a process; empty when it has ended, whether its parent has noticed or not."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # psutil's zombies too
        return ""


def worker_of(job: subprocess.Popen[str], old: Set[int] = frozenset(), task: str = "ray::encode group") -> psutil.Process:
    """Wait until an encoding worker of the job is at a task, none of `old` (Ray names a process after the task it runs)."""
    while True:
        assert job.poll() is None, job.stdout.read() if job.stdout else ""
        for child in psutil.Process(job.pid).children(recursive=True):
            if child.pid not in old and "ray::encode group" in command_of(child):
                return child
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(timeout=0.05)


def test_kills_leave_no_trace(undisturbed: tokenize.Summary, config: Path, tmp_path: Path) -> None:
    """kill -9 of the driver while planning, then of a worker and a decoder while encoding, then of the driver again; at last
    a worker freezes, is found by its heartbeat, and ended."""
    shards = tmp_path / "shards"
    with job_of(config) as job:
        wait_for(job, shards, ".plan/part-*.arrow")
    assert not (shards / "index").exists()

    with job_of(config) as job:
        wait_for(job, shards, "*/shard-*.parquet")
        with urllib.request.urlopen(f"http://{(shards / 'metrics-address').read_text().strip()}/metrics") as answer:
            assert "videoar_pipeline_shards_committed_total" in answer.read().decode()
        killed = set()
        for child in psutil.Process(job.pid).children(recursive=True):
            if "EncodeActor" in command_of(child) or "pipeline.decoding" in command_of(child):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(signal.SIGKILL)
                    killed.add(child.pid)
        assert worker_of(job, killed).pid not in killed  # another one goes on in its place
    assert not (shards / "index").exists()

    with job_of(config, "pipeline.stall_seconds=25", "pipeline.worker_deaths=1000") as job:
        frozen = worker_of(job)
        frozen.suspend()
        out, _ = job.communicate(timeout=240)
        assert job.returncode == 0, out
        assert "no clip for pipeline.stall_seconds = 25 s; killing it" in out and not frozen.is_running()
    assert undisturbed.digest in out and verify.digest(shards) == undisturbed.digest
    assert verify.verify(shards).sound
    assert not list(shards.rglob("*.tmp"))


NEVER = """
import types, pipeline.workers.encode_pool as pool
pool.START_SECONDS, make = 15.0, pool.EncodeActor.options
pool.EncodeActor = types.SimpleNamespace(options=lambda **chosen: make(**{**chosen, "num_cpus": 999}))
"""


def test_a_worker_that_does_not_begin_is_asked_for_anew(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no heartbeat yet: frozen on its way, or waiting for a CPU (here for more than there are), which is no death."""
    monkeypatch.setattr(sys.modules[__name__], "RUN", NEVER + RUN)
    said: list[str] = []
    with job_of(config, "pipeline.stall_seconds=15", "pipeline.workers=1", "pipeline.worker_deaths=1") as job:
        assert job.stdout is not None
        for line in job.stdout:
            said.append(line)
            if sum("worker 0: has not started within 15 s; requesting another" in one for one in said) == 2:
                break
        # pipeline.worker_deaths is 1: none of these counts
        assert job.poll() is None, "".join(said)
