"""One shard group: its clips decoded once in a child process, encoded in batches by rule, committed as shards.

In:  groups of planned clips (clips.parquet), a codec.
Out: committed shards; `GroupReport`.
Called by: the encoding actors of pipeline.ray_job.

What a shard's bytes depend on: batches are formed from the group's own list (each bucket's clips in the order of the
plan, `pipeline.batch` at a time); a clip that could not be decoded leaves its place in the batch filled with zeros, so the
others' batch does not change; threads come from the configuration.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.encoding.batching import Codec
from pipeline.encoding.prefetch import Feed
from pipeline.records import Bucket, Clip, Reject
from pipeline.shards.commit_record import ShardInfo
from pipeline.shards.manifest import Manifest
from pipeline.shards.writer import Encoded, write_shard
from pipeline.video import Frames


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
