"""One shard group: its clips are decoded in child processes, encoded in batches and committed as shards.

In:  numbers of groups of planned clips (the table of clips), a codec.
Out: committed shards; a `GroupReport` per group.

What a shard's bytes depend on: batches are formed from the group's own list (the clips of each bucket in the order of the plan,
`pipeline.batch` at a time). A clip that cannot be decoded leaves zeros in its place in the batch, so that the batch of the others
does not change. The number of torch threads comes from the configuration.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.encoding.prefetch import Prefetcher
from pipeline.records import Bucket, Clip, Reject
from pipeline.shards.commit_record import ShardInfo
from pipeline.shards.manifest import Manifest
from pipeline.shards.writer import EncodedClip, write_shard
from pipeline.video import Frames
from tokenizer.quantization.codec_spec import CodecSpec


class Codec(Protocol):
    """What encoding needs of tokenizer.codec.VideoCodec."""

    spec: CodecSpec

    def encode(self, frames_BTHWC: torch.Tensor) -> Any:
        """Encode frames uint8 (B,T,H,W,3) to packed `bits` uint8 (B, bytes) and `features` float32 (B,T',d,h,w)."""


@dataclass(frozen=True)
class GroupReport:
    """What an actor reports to the driver about a finished group: counts and times, no pixels and no tokens."""

    group: int
    infos: tuple[ShardInfo, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds of the actor's loop: decode_wait, encode, write."""
    decoder_deaths: int = 0
    software: dict[str, int] = field(default_factory=dict)
    """Videos per video codec that `pipeline.decode_device` left to the CPU."""


class GroupEncoder:
    """Encodes whole groups, one after the other. One per actor."""

    def __init__(self, folder: Path, config: PipelineConfig, codec: Codec) -> None:
        torch.set_num_threads(config.threads)
        self.folder, self.config, self.codec = folder, config, codec
        self.manifest = Manifest(folder)
        self.prefetcher = Prefetcher(self.manifest, config)
        self.steps = 0
        """Clips and shards done so far; a worker whose count does not change is hung."""

    def encode(self, group: int, ahead: int | None = None) -> GroupReport:
        """Encode and commit those shards of `group` that are not committed yet, while `ahead` is decoded. Raises DiskFull."""
        deaths, software = self.prefetcher.deaths, self.prefetcher.software
        self.prefetcher.request(group)
        if ahead is not None:
            self.prefetcher.request(ahead)
        clips = self.manifest.uncommitted(group)
        seconds = {"decode_wait": 0.0, "encode": 0.0, "write": 0.0}
        batches = {bucket: _ShardBatches(own, self.config.batch) for bucket, own in _by_bucket(clips).items()}
        began = time.monotonic()
        for clip, result in self.prefetcher.take(group):
            seconds["decode_wait"] += time.monotonic() - began
            began = time.monotonic()
            batches[clip.bucket].add(clip, result, self.codec, self.config.features)
            self.steps += 1
            seconds["encode"] += time.monotonic() - began
            began = time.monotonic()
        began = time.monotonic()
        infos = tuple(self._write(batch) for batch in batches.values())
        seconds["write"] = time.monotonic() - began
        return GroupReport(group, infos, seconds, self.prefetcher.deaths - deaths, dict(self.prefetcher.software - software))

    def close(self) -> None:
        """End the decoders."""
        self.prefetcher.close()

    def _write(self, batches: _ShardBatches) -> ShardInfo:
        self.steps += 1
        return write_shard(
            self.folder,
            batches.shard,
            batches.samples,
            batches.rejects,
            self.codec.spec,
            zstd_level=self.config.zstd_level,
            min_free_gb=self.config.min_free_gb,
        )


class _ShardBatches:
    """The clips of one shard, collected into batches for the codec."""

    def __init__(self, clips: Sequence[Clip], size: int) -> None:
        self.shard = clips[0].shard
        self.samples: list[EncodedClip] = []
        self.rejects: list[Reject] = []
        self._left = len(clips)
        self._size = size
        self._waiting: list[tuple[Clip, Frames | None]] = []

    def add(self, clip: Clip, result: Frames | Reject, codec: Codec, features: bool) -> None:
        """Add the next outcome, and encode the batch once it is full."""
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
                    self.samples.append(
                        EncodedClip(clip, bits[place].tobytes(), None if feats is None else feats[place].tobytes())
                    )
        self._waiting = []


def _by_bucket(clips: Sequence[Clip]) -> dict[Bucket, list[Clip]]:
    found: dict[Bucket, list[Clip]] = {}
    for clip in clips:
        found.setdefault(clip.bucket, []).append(clip)
    return found
