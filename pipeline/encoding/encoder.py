"""One shard group: its clips decoded once in a child process, encoded in batches by rule, committed as shards.

In:  groups of planned clips (clips.parquet), a codec.
Out: committed shards; `GroupReport`.
Called by: the encoding actors of pipeline.ray_job.

What a shard's bytes depend on: batches are formed from the group's own list (each bucket's clips in the order of the
plan, `pipeline.batch` at a time); a clip that could not be decoded leaves its place in the batch filled with zeros, so the
others' batch does not change; threads come from the configuration.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.corpus import listing
from pipeline.config import PipelineConfig
from pipeline.decoding.process import DecoderDied, DecoderProcess
from pipeline.shards.dataset import excluded, hidden
from pipeline.shards.manifest import Manifest, taken_down
from pipeline.planning.planner import clip_times
from pipeline.records import Bucket, Clip, Reject
from pipeline.shards.writer import Encoded, ShardInfo, write_shard
from pipeline.video import Frames, Request, VideoError
from tokenizer.quantization.codec_spec import CodecSpec


class Codec(Protocol):
    """What encoding needs of tokenizer.codec.VideoCodec."""

    spec: CodecSpec

    def encode(self, frames_BTHWC: torch.Tensor) -> Any:
        """Frames uint8 (B,T,H,W,3) to packed `bits` uint8 (B, bytes) and `features` float32 (B,T',d,h,w)."""


@dataclass(frozen=True)
class GroupReport:
    """What an actor tells the driver of a finished group: figures, no pixels and no tokens."""

    group: int
    infos: tuple[ShardInfo, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    """decode_wait, encode, write: wall-clock seconds of the actor's loop."""
    decoder_deaths: int = 0
    software: dict[str, int] = field(default_factory=dict)
    """Videos by codec that `pipeline.decode_device` left to the CPU."""


Outcome = tuple[Clip, "Frames | Reject"]


def decoded(
    clips: Sequence[Clip], decoder: DecoderProcess, config: PipelineConfig, gone: Sequence[str] = ()
) -> Iterator[Outcome]:
    """Decode clips video by video (neighbours of one source in one pass); each gets its frames or its refusal, in order.

    gone: sources taken down (pipeline.index.excluded); their clips are refused unseen.
    """
    for name, group in groupby(clips, key=lambda clip: clip.source):
        wanted = list(group)
        done = 0
        if hidden(name, gone):
            yield from ((clip, taken_down(clip)) for clip in wanted)
            continue
        try:
            with listing.local(name) as path:
                for attempt in range(1, config.limits.attempts + 1):
                    try:
                        requests = [
                            Request(clip_times(clip), clip.bucket.height, clip.bucket.width, clip.crop) for clip in wanted
                        ]
                        for number, frames in enumerate(decoder.read(path, requests)):
                            # After a death the pass begins anew, so that a clip's pixels come from one way of reading;
                            # what was given before is not given again.
                            if number >= done:
                                yield wanted[number], frames
                                done += 1
                        break
                    except DecoderDied:
                        if attempt == config.limits.attempts:
                            raise
        except VideoError as error:
            yield from ((clip, _refusal(clip, error.reason, str(error))) for clip in wanted[done:])
        except DecoderDied as error:
            detail = f"{error}; quarantined after {config.limits.attempts} attempts"
            yield from ((clip, _refusal(clip, error.reason, detail)) for clip in wanted[done:])


def _refusal(clip: Clip, reason: str, detail: str) -> Reject:
    return Reject(clip.source, "encode", reason, detail, clip.begin, clip.end, clip.scores, clip.key)


class Feed:
    """Decodes groups beside the codec, in the order they are asked for, a bounded number of clips ahead.

    Each of `pipeline.decoders` lanes is a thread with a child of its own; the videos of the groups go to the lanes in turn,
    and outcomes are taken from them in the same turn, so their order does not depend on which lane is faster.
    """

    def __init__(self, manifest: Manifest, config: PipelineConfig) -> None:
        self._manifest = manifest
        self._lanes = [_Lane(manifest, config) for _ in range(config.decoders)]
        self._asked: dict[int, list[_Lane]] = {}
        self._turn = 0

    @property
    def deaths(self) -> int:
        """Children that have died so far."""
        return sum(lane.decoder.deaths for lane in self._lanes)

    @property
    def software(self) -> Counter[str]:
        """Videos by codec that the decoding device has left to the CPU so far."""
        return sum((lane.decoder.software for lane in self._lanes), Counter())

    def ask(self, group: int) -> None:
        """Queue a group for decoding, unless it is queued already."""
        if group in self._asked:
            return
        lanes = []
        for _, clips in groupby(self._manifest.uncommitted(group), key=lambda clip: clip.source):
            lane = self._lanes[self._turn % len(self._lanes)]
            self._turn += 1
            lane.jobs.put(list(clips))
            lanes.append(lane)
        self._asked[group] = lanes

    def take(self, group: int) -> Iterator[Outcome]:
        """Give the outcomes of `group`; groups asked for before it and never taken are thrown away."""
        self.ask(group)
        found = -1
        while found != group:
            found = next(iter(self._asked))
            for lane in self._asked[found]:
                for outcome in lane.take():
                    if found == group:
                        yield outcome
            del self._asked[found]

    def close(self) -> None:
        """End the threads after the videos they work on, and the children with them."""
        for lane in self._lanes:
            lane.jobs.put(None)


class _Lane:
    """One decoding thread and its child."""

    def __init__(self, manifest: Manifest, config: PipelineConfig) -> None:
        self._folder, self._config = manifest.folder, config
        self.decoder = DecoderProcess(config.limits, config.decode_device)
        self.jobs: queue.Queue[list[Clip] | None] = queue.Queue()
        self._items: queue.Queue[Outcome | BaseException | None] = queue.Queue(maxsize=2 * config.batch * len(config.buckets))
        # A daemon: a worker that is told to end must not wait for a decoder.
        threading.Thread(target=self._run, name="decode", daemon=True).start()

    def take(self) -> Iterator[Outcome]:
        """Give the outcomes of the oldest job that has not been taken."""
        while (item := self._items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        try:
            while (clips := self.jobs.get()) is not None:
                for outcome in decoded(clips, self.decoder, self._config, excluded(self._folder)):
                    self._items.put(outcome)
                self._items.put(None)
            self.decoder.close()
        except BaseException as error:  # noqa: BLE001 - not swallowed: `take` raises it in the caller's thread
            self._items.put(error)


class GroupEncoder:
    """Encodes whole groups, one after the other. One an actor."""

    def __init__(self, folder: Path, config: PipelineConfig, codec: Codec) -> None:
        torch.set_num_threads(config.threads)
        self.folder, self.config, self.codec = folder, config, codec
        self.manifest = Manifest(folder)
        self.feed = Feed(self.manifest, config)
        self.steps = 0
        """Clips and shards done so far; a worker whose count stands still is hung."""

    def encode(self, group: int, ahead: int | None = None) -> GroupReport:
        """Encode and commit those shards of `group` that are not committed yet; the decoder goes on with `ahead` meanwhile. Raises DiskFull."""
        deaths, software = self.feed.deaths, self.feed.software
        self.feed.ask(group)
        if ahead is not None:
            self.feed.ask(ahead)
        clips = self.manifest.uncommitted(group)
        seconds = {"decode_wait": 0.0, "encode": 0.0, "write": 0.0}
        batches = {bucket: _Batches(items, self.config.batch) for bucket, items in _by_bucket(clips).items()}
        began = time.monotonic()
        for clip, result in self.feed.take(group):
            seconds["decode_wait"] += time.monotonic() - began
            began = time.monotonic()
            batches[clip.bucket].add(clip, result, self.codec, self.config.features)
            self.steps += 1
            seconds["encode"] += time.monotonic() - began
            began = time.monotonic()
        began = time.monotonic()
        infos = tuple(self._write(batch) for batch in batches.values())
        seconds["write"] = time.monotonic() - began
        return GroupReport(group, infos, seconds, self.feed.deaths - deaths, dict(self.feed.software - software))

    def _write(self, batch: _Batches) -> ShardInfo:
        self.steps += 1
        return write_shard(
            self.folder,
            batch.shard,
            batch.samples,
            batch.rejects,
            self.codec.spec,
            zstd_level=self.config.zstd_level,
            min_free_gb=self.config.min_free_gb,
        )

    def close(self) -> None:
        """End the decoder."""
        self.feed.close()


class _Batches:
    """The clips of one shard on their way through the codec."""

    def __init__(self, clips: Sequence[Clip], size: int) -> None:
        self.shard = clips[0].shard
        self.samples: list[Encoded] = []
        self.rejects: list[Reject] = []
        self._left = len(clips)
        self._size = size
        self._waiting: list[tuple[Clip, Frames | None]] = []

    def add(self, clip: Clip, result: Frames | Reject, codec: Codec, features: bool) -> None:
        """Take the next outcome; a full batch is encoded at once."""
        if isinstance(result, Reject):
            self.rejects.append(result)
            self._waiting.append((clip, None))
        else:
            self._waiting.append((clip, result))
        self._left -= 1
        if len(self._waiting) == self._size or self._left == 0:
            self._flush(codec, features)

    def _flush(self, codec: Codec, features: bool) -> None:
        bucket = self._waiting[0][0].bucket
        batch: NDArray[np.uint8] = np.zeros((len(self._waiting), bucket.frames, bucket.height, bucket.width, 3), np.uint8)
        for place, (_, frames) in enumerate(self._waiting):
            if frames is not None:
                batch[place] = frames
        if any(frames is not None for _, frames in self._waiting):
            out = codec.encode(torch.from_numpy(batch))
            bits = out.bits.cpu().numpy()
            feats = out.features.to(torch.bfloat16).cpu().contiguous().view(torch.uint8).numpy() if features else None
            for place, (clip, frames) in enumerate(self._waiting):
                if frames is not None:
                    self.samples.append(Encoded(clip, bits[place].tobytes(), None if feats is None else feats[place].tobytes()))
        self._waiting = []


def _by_bucket(clips: Sequence[Clip]) -> dict[Bucket, list[Clip]]:
    found: dict[Bucket, list[Clip]] = {}
    for clip in clips:
        found.setdefault(clip.bucket, []).append(clip)
    return found
