"""`videoar tokenize`: the whole job on Ray, from a corpus to a finished SHARDS folder.

In:  the configuration.
Out: a SHARDS folder and a `Summary`. Run again = continue: what is committed is never made again.
Called by: the command line and `ray job submit` (which runs the same command), tests, the demo.

 driver: lock ▸ dataset.json ▸ list ▸ [plan tasks] ▸ merge ▸ [encode actors] ▸ index.parquet
A planning task looks at some videos and writes one part file; an encoding actor owns whole shard groups. Only paths,
numbers and reports pass through Ray; no pixel and no token does. SHARDS must be one folder for all hosts.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
import torch
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.config import Config, MetricsConfig
from cluster.metrics import Meter
from cluster.progress import ProgressBar
from pipeline import ledger
from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.dedup import content_digest
from pipeline.encode import GroupEncoder, GroupReport
from pipeline.ledger import ADDRESS, FORMAT, INDEX, Lock
from pipeline.manifest import Manifest, summed
from pipeline.ray_plan import plan_part, stand_in
from pipeline.records import SourceVideo
from pipeline.shards import ShardInfo, read_info
from pipeline.source import find, local
from pipeline.verify import verify
from pipeline.video import VideoError
from tokenizer.codec import VideoCodec, read_json
from tokenizer.config import TokenizerConfig
from tokenizer.spec import CodecSpec

FPS_RULE = "frame k of a clip is the frame that the video shows at begin + k / fps seconds from its first frame"
_NOT_CONTENT = {
    "output",
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "min_free_gb",
    "limits",
    "videos_per_task",
    "worker_deaths",
    "stall_seconds",
}
_TASK_TRIES = 3
_LOST = (WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError, LocalRayletDiedError, RayActorError)
"""What Ray raises when the process or host that had the work is gone."""
_LOOK = 5.0
"""Seconds between looks at workers that may hang."""


class JobError(RuntimeError):
    """The job cannot go on; the message says why and what to do. Running again continues."""


@dataclass(frozen=True)
class Summary:
    """Counts over the whole folder after the job."""

    videos: int
    """Videos with an outcome."""
    videos_used: int
    """Videos with at least one encoded clip."""
    clips: int
    """Clips planned."""
    encoded: int
    """Samples in the shards."""
    shards: int
    tokens: int
    frames: int
    bytes: int
    """Of the tars."""
    rejects: dict[str, int]
    """Refused videos and stretches by reason."""
    digest: str
    """One sha256 over all committed content."""
    new_shards: int
    """Committed by this run."""
    seconds: dict[str, float]
    """Wall-clock seconds of this run's actors: decode_wait, encode, write."""


def tokenize(config: Config, *, retry: bool = False, repair: bool = False) -> Summary:
    """Run the job to its end.

    retry: videos that could not be probed and clips that could not be encoded get another try, in new shards.
    repair: check every byte first, and make damaged or missing shards again from their videos.
    Raises SourceError, LedgerError (Locked, ConfigChanged), DiskFull, CodecError, JobError; nothing committed is lost.
    """
    pipeline = config.get(PipelineConfig)
    spec = _spec(config)
    with Lock(pipeline.output), _meter(config) as meter:
        ledger.remove_leftovers(pipeline.output)
        ledger.begin(pipeline.output, dataset(config, spec))
        manifest = Manifest(pipeline.output)
        if manifest.generation() is None:
            _list(config.get(CorpusConfig), manifest, retry)
        damaged = _discard_damaged(manifest) if repair else {}
        with _cluster(pipeline):
            if (videos := manifest.generation()) is not None:
                _plan(videos, pipeline, manifest, meter)
            reports = _encode(config, manifest, meter)
        summary = _finish(pipeline, manifest, reports)
        _compare(manifest, damaged)
        return summary


def dataset(config: Config, spec: CodecSpec) -> dict[str, Any]:
    """Return dataset.json: what every shard of the folder has in common, and the settings that shape their content."""
    pipeline, corpus = config.get(PipelineConfig), config.get(CorpusConfig)
    plain = pipeline.model_dump(mode="json")
    settings = {key: value for key, value in plain.items() if key not in _NOT_CONTENT}
    listing = {key: value for key, value in corpus.model_dump(mode="json").items() if key in ("captions", "columns")}
    return {
        "format": FORMAT,
        "spec": spec.plain(),
        "fps": pipeline.fps,
        "fps_rule": FPS_RULE,
        "buckets": [bucket.name for bucket in pipeline.buckets],
        "features": pipeline.features,
        "scales": {b.name: _scales(spec, b.frames, b.height, b.width) for b in pipeline.buckets},
        "pipeline": settings,
        "corpus": listing,
    }


def _scales(spec: CodecSpec, frames: int, height: int, width: int) -> list[list[int]]:
    _, rows, columns = spec.grid(frames, height, width)
    return [list(scale) for scale in spec.scales(rows, columns)]


def _spec(config: Config) -> CodecSpec:
    weights = config.get(TokenizerConfig).weights
    _, spec, _ = read_json(weights)
    for bucket in config.get(PipelineConfig).buckets:
        try:
            spec.grid(bucket.frames, bucket.height, bucket.width)
        except ValueError as error:
            raise JobError(f"pipeline.buckets: {bucket.name} does not fit the tokenizer {weights}: {error}") from error
    return spec


@contextmanager
def _meter(config: Config) -> Iterator[Meter]:
    metrics, folder = config.get(MetricsConfig), config.get(PipelineConfig).output
    meter = Meter()
    if metrics.enabled:
        address = meter.serve(metrics.host, metrics.port, folder / ADDRESS)
        print(f"metrics: http://{address}/metrics", flush=True)
    try:
        yield meter
    finally:
        meter.close()
        (folder / ADDRESS).unlink(missing_ok=True)


@contextmanager
def _cluster(config: PipelineConfig) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names (as inside `ray job submit`), or start one in this process for the job."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", log_to_driver=True)
        print(f"ray: joined the cluster at {os.environ['RAY_ADDRESS']}", flush=True)
        try:
            yield
        finally:
            ray.shutdown()
        return
    cpus = max(os.cpu_count() or 1, int(config.workers * config.cpus_per_worker + 0.999))
    # Ray's sockets live below this folder, and a socket's path may not exceed 107 bytes.
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=cpus, include_dashboard=False, _temp_dir=folder, logging_level=logging.WARNING, log_to_driver=True)
        try:
            yield
        finally:
            ray.shutdown()


# ---- planning -----------------------------------------------------------------------------------------------------


def _list(corpus: CorpusConfig, manifest: Manifest, retry: bool) -> None:
    """List the corpus; videos without an outcome yet (and, with `retry`, quarantined ones) make a new generation."""
    known = manifest.known()
    again, clips = manifest.quarantined() if retry else (set(), [])
    listed = find(corpus)
    new = [video for video in listed if video.source not in known or video.source in again]
    print(
        f"corpus: {len(listed)} videos, {len(new)} of them to plan" + (f", {len(clips)} clips again" if retry else ""),
        flush=True,
    )
    if new or clips:
        (manifest.folder / INDEX).unlink(missing_ok=True)
        manifest.begin_generation(new, clips)


def _discard_damaged(manifest: Manifest) -> dict[str, str]:
    """Find damaged shards, make sure that their videos are still what they were, and discard them.

    Returns the sha256 that each had, by shard, where the index still tells it. Raises JobError, with nothing touched, when a
    video is gone or changed: its samples would be lost.
    """
    if manifest.generation() is not None or not manifest.groups():
        return {}
    damaged = set(verify(manifest.folder).damaged)
    known: dict[str, str] = {}
    if damaged and (manifest.folder / INDEX).exists():
        table = pq.read_table(manifest.folder / INDEX, columns=["shard", "tar_sha256"])
        known = dict(zip(table["shard"].to_pylist(), table["tar_sha256"].to_pylist()))
    checked: set[str] = set()
    for group, names, _ in manifest.shards():
        if damaged.isdisjoint(names):
            continue
        for clip in manifest.clips(group):
            if clip.shard not in damaged or clip.source in checked:
                continue
            checked.add(clip.source)
            try:
                with local(clip.source) as path:
                    same = content_digest(path) == clip.source_digest
            except VideoError as error:
                raise JobError(
                    f"{clip.shard} is damaged and cannot be made again: {error}; bring the video back, or exclude it"
                ) from error
            if not same:
                raise JobError(
                    f"{clip.shard} is damaged and cannot be made again: {clip.source} has changed; bring the old one back"
                )
    for name in sorted(damaged):
        print(f"repair: {name} is made again", flush=True)
        (manifest.folder / f"{name}.parquet").unlink(missing_ok=True)
        (manifest.folder / f"{name}.tar").unlink(missing_ok=True)
    return {name: known.get(name, "") for name in damaged}


def _compare(manifest: Manifest, damaged: Mapping[str, str]) -> None:
    other = [n for n, old in sorted(damaged.items()) if old and read_info(manifest.folder / f"{n}.parquet").tar_sha256 != old]
    if other:
        raise JobError(
            f"{', '.join(other)}: made again with other bytes than before (another processor or library version?); "
            "the folder is sound, but its digest has changed"
        )


def _plan(videos: Sequence[SourceVideo], config: PipelineConfig, manifest: Manifest, meter: Meter) -> None:
    size = config.videos_per_task
    parts = [videos[at : at + size] for at in range(0, len(videos), size)]
    todo = deque(number for number in range(len(parts)) if not manifest.part(number).exists())
    done = len(videos) - sum(len(parts[number]) for number in todo)
    running: dict[Any, int] = {}
    failures: Counter[int] = Counter()
    with ProgressBar("plan", len(videos), done=done) as progress:
        while todo or running:
            while todo and len(running) < 2 * _cpus():
                number = todo.popleft()
                task = plan_part.options(name=f"plan part {number}", max_retries=0)
                running[task.remote(list(parts[number]), config, manifest.part(number).absolute(), Path.cwd())] = number
            for ref in ray.wait(list(running))[0]:
                number = running.pop(ref)
                try:
                    count, clips = ray.get(ref)
                except _LOST as error:
                    failures[number] += 1
                    if failures[number] == _TASK_TRIES:
                        raise JobError(
                            f"planning part {number} ({parts[number][0].source} ...) died {_TASK_TRIES} times"
                        ) from error
                    todo.append(number)
                except RayTaskError as error:
                    raise _cause(error) from error
                else:
                    progress.update(count, note=f"{clips} clips in the last part")
    used, refused = manifest.merge(config, len(parts))
    meter.inc("pipeline_videos_total", used, outcome="planned")
    meter.inc("pipeline_videos_total", refused, outcome="refused")


def _cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _cause(error: RayTaskError) -> BaseException:
    """The error as the task raised it: the driver's caller shows it as one line."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, ValueError | OSError | RuntimeError) else error


# ---- encoding -----------------------------------------------------------------------------------------------------


@ray.remote(max_restarts=0)
class _EncodeActor:
    """One codec on one device; owns whole shard groups."""

    def __init__(self, config: PipelineConfig, weights: Path, folder: Path) -> None:
        stand_in(folder)
        self._config, self._weights = config, weights
        self._encoder: GroupEncoder | None = None

    def ready(self) -> int:
        """Load the codec; errors reach the driver as they are."""
        device = "cuda" if self._config.gpus_per_worker > 0 else "cpu"
        torch.set_num_threads(self._config.threads)
        codec = VideoCodec.load(self._weights, device=device, dtype=getattr(torch, self._config.dtype))
        self._encoder = GroupEncoder(self._config.output, self._config, codec)
        return os.getpid()

    def encode(self, group: int, ahead: int | None) -> GroupReport:
        """Encode and commit one group."""
        assert self._encoder is not None
        return self._encoder.encode(group, ahead)


class _Pool:
    """Actors, the groups each of them holds (at work on the first, decoding ahead for the second), and their deaths."""

    def __init__(self, config: Config, todo: Sequence[int], limit: int) -> None:
        self._config = config.get(PipelineConfig)
        self._weights = config.get(TokenizerConfig).weights.absolute()
        self.todo = deque(todo)
        self._actors: dict[int, Any] = {}
        self._held: dict[int, list[int]] = {}
        self._running: dict[Any, int] = {}
        self._since: dict[int, float] = {}
        self._deaths: Counter[int] = Counter()
        self._early_deaths = 0
        for slot in range(min(limit, len(self.todo))):
            self._start(slot)

    def _start(self, slot: int) -> None:
        maker: Any = _EncodeActor
        actor = maker.options(
            name=f"encode-{os.getpid()}-{slot}-{sum(self._deaths.values()) + self._early_deaths}",
            num_cpus=self._config.cpus_per_worker,
            num_gpus=self._config.gpus_per_worker,
        ).remote(self._config.model_copy(update={"output": self._config.output.absolute()}), self._weights, Path.cwd())
        self._actors[slot], self._held[slot] = actor, []
        self._running[actor.ready.options(name="load codec").remote()] = slot

    def _next(self, slot: int) -> None:
        held = self._held[slot]
        while self.todo and len(held) < 2:
            held.append(self.todo.popleft())
        if held:
            name = f"encode group {held[0]}"
            ahead = held[1] if len(held) > 1 else None
            self._running[self._actors[slot].encode.options(name=name).remote(held[0], ahead)] = slot
            self._since[slot] = time.monotonic()

    def _end_hung(self) -> None:
        """End workers that have been at one group for too long; their death is then seen like any other."""
        for slot, since in self._since.items():
            if time.monotonic() - since > self._config.stall_seconds:
                print(
                    f"worker {slot}: over pipeline.stall_seconds = {self._config.stall_seconds:g} s in one group; ending it",
                    flush=True,
                )
                ray.kill(self._actors[slot])

    @property
    def busy(self) -> bool:
        return bool(self.todo or any(self._held.values()))

    def wait(self) -> Iterator[GroupReport]:
        """Wait for news; give the reports of finished groups."""
        ready, _ = ray.wait(list(self._running), timeout=_LOOK)
        if not ready:
            self._end_hung()
        for ref in ready:
            slot = self._running.pop(ref)
            self._since.pop(slot, None)
            try:
                result = ray.get(ref)
            except _LOST as error:
                self._bury(slot, error)
                continue
            except RayTaskError as error:
                raise _cause(error) from error
            if isinstance(result, GroupReport):
                self._held[slot].remove(result.group)
                yield result
            self._next(slot)

    def _bury(self, slot: int, error: BaseException) -> None:
        # A hung or half-dead worker must be gone before another one takes over its shards.
        ray.kill(self._actors[slot])
        held = self._held[slot]
        if held:
            self._deaths[held[0]] += 1
            if self._deaths[held[0]] >= self._config.worker_deaths:
                raise JobError(
                    f"shard group {held[0]}: {self._deaths[held[0]]} workers died over it ({_one_line(error)}); "
                    "all other shards are kept; look at memory limits, then run again"
                ) from error
        else:
            self._early_deaths += 1
            if self._early_deaths >= self._config.worker_deaths:
                raise JobError(f"workers die before they begin: {_one_line(error)}") from error
        print(f"worker {slot} died ({_one_line(error)}); a new one takes over", flush=True)
        self.todo.extendleft(reversed(held))
        self._start(slot)

    def close(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _encode(config: Config, manifest: Manifest, meter: Meter) -> list[GroupReport]:
    pipeline = config.get(PipelineConfig)
    todo, clips_of, shards, ready = [], {}, 0, 0
    for group, names, clips in manifest.shards():
        shards += len(names)
        clips_of[group] = clips
        if manifest.committed(names):
            ready += len(names)
        else:
            todo.append(group)
    total = sum(clips_of.values())
    done = total - sum(clips_of[group] for group in todo)
    meter.set("pipeline_progress_ratio", ready / shards if shards else 1.0)
    for name in ("pipeline_frames_total", "pipeline_tokens_total", "pipeline_shards_committed_total"):
        meter.inc(name, 0)
    reports: list[GroupReport] = []
    if not todo:
        return reports
    (pipeline.output / INDEX).unlink(missing_ok=True)
    pool = _Pool(config, todo, pipeline.workers)
    refused = 0
    try:
        with ProgressBar("encode", total, done=done) as progress:
            while pool.busy:
                for report in pool.wait():
                    reports.append(report)
                    ready += len(report.infos)
                    refused += summed(report.infos)["refused"]
                    _publish(report, meter)
                    meter.set("pipeline_progress_ratio", ready / shards)
                    progress.update(clips_of[report.group], note=f"{ready}/{shards} shards, {refused} clips refused")
    finally:
        pool.close()
    return reports


def _publish(report: GroupReport, meter: Meter) -> None:
    sums = summed(report.infos)
    meter.inc("pipeline_clips_total", sums["samples"], outcome="encoded", reason="")
    for info in report.infos:
        for reject in info.rejects:
            meter.inc("pipeline_clips_total", outcome="refused", reason=reject["reason"])
    meter.inc("pipeline_frames_total", sums["frames"])
    meter.inc("pipeline_tokens_total", sums["tokens"])
    meter.inc("pipeline_shards_committed_total", len(report.infos))
    for stage, seconds in report.seconds.items():
        meter.observe("pipeline_stage_seconds", seconds, stage=stage)


def _finish(config: PipelineConfig, manifest: Manifest, reports: Sequence[GroupReport]) -> Summary:
    digest = manifest.finish()
    infos: list[ShardInfo] = []
    clips = 0
    for _, names, count in manifest.shards():
        clips += count
        infos += [read_info(config.output / f"{name}.parquet") for name in names]
    sums = summed(infos)
    rejects = manifest.rejects()
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds.update(report.seconds)
    summary = Summary(
        videos=len(manifest.known()),
        videos_used=len(manifest.used()),
        clips=clips,
        encoded=sums["samples"],
        shards=len(infos),
        tokens=sums["tokens"],
        frames=sums["frames"],
        bytes=sums["bytes"],
        rejects=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        digest=digest,
        new_shards=sum(len(report.infos) for report in reports),
        seconds={name: round(value, 3) for name, value in sorted(seconds.items())},
    )
    print(describe(summary), flush=True)
    return summary


def describe(summary: Summary) -> str:
    """Return the summary as a few lines of text."""
    plain = asdict(summary)
    refused = ", ".join(f"{count} {reason}" for reason, count in plain["rejects"].items()) or "none"
    return (
        f"videos: {summary.videos}, {summary.videos_used} of them used\n"
        f"clips: {summary.encoded} of {summary.clips} encoded; refused videos and stretches: {refused}\n"
        f"shards: {summary.shards} ({summary.new_shards} new), {summary.tokens} tokens, {summary.bytes / 1e6:.1f} MB\n"
        f"digest: {summary.digest}"
    )
