"""Held-out clips: what was tokenized into the held-out shards, and the pixels that it was made of.

In:  opened folders of token shards (curriculum.validation) whose source videos can be read.
Out: `HeldOut`: keys, captions, bits as stored, frames decoded again at the same times; a set chosen by the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cluster.config import ConfigError
from cluster.runtime.progress import ProgressBar
from pipeline.records import Bucket, TokenSample
from pipeline.video import Request, read_clips
from pretrain.evaluation.networks import digest
from tokenizer.quantization.codec_spec import CodecSpec

if TYPE_CHECKING:
    from pipeline.shards.dataset import ShardDataset

OpenVideo = Callable[[str, str], AbstractContextManager[Path]]
"""Gives a local path of a video by its name and content digest; raises VideoError if it is not there or has changed."""


class EvaluationError(ConfigError):
    """What cannot be scored; the message names it and says how to go on."""


@dataclass(frozen=True)
class HeldOut:
    """Some clips of one shape, in the order that the seed gives."""

    keys: tuple[str, ...]
    captions: tuple[str, ...]
    bits: Tensor
    """uint8 (N, bytes): as the shards hold them."""
    frames: Tensor
    """uint8 (N, T, H, W, 3)."""
    available: int
    """Clips of this shape that the shards hold."""

    @property
    def digest(self) -> str:
        """The sha256 of all pixels."""
        return digest(self.frames)

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, begin: int, end: int) -> HeldOut:
        """Return some of the clips."""
        at = slice(begin, end)
        return HeldOut(self.keys[at], self.captions[at], self.bits[at], self.frames[at], self.available)


def read(
    datasets: Mapping[Path | str, ShardDataset], spec: CodecSpec, shape: Bucket, count: int, *, seed: int, video: OpenVideo
) -> HeldOut:
    """Read at most `count` clips of a shape, or of the shortest longer one of that height and width, which is cut.

    Raises EvaluationError for shards of another tokenizer or without such clips, CorruptSample, VideoError.
    """
    if not datasets:
        raise EvaluationError(
            "no held-out clips: set curriculum.validation to folders of token shards that were not trained on"
        )
    places: list[tuple[ShardDataset, Bucket, int]] = []
    for folder, dataset in datasets.items():
        if dataset.spec.digest != spec.digest:
            raise EvaluationError(
                f"{folder}: shards of tokenizer {dataset.spec.digest[:12]}, the model's is {spec.digest[:12]}: tokenize the held-out "
                "videos with the model's tokenizer"
            )
        bucket = _bucket(dataset.buckets(), shape)
        if bucket is not None:
            places += [(dataset, bucket, number) for number in range(int(dataset.shard_rows(bucket).sum()))]
    if len(places) < 2:
        raise EvaluationError(
            f"{', '.join(map(str, datasets))}: {len(places)} clips of {shape.name} or longer, and scores take at least 2: hold out more "
            "videos, or name another shape with --bucket"
        )
    chosen = np.random.default_rng(seed).permutation(len(places))[:count].tolist()
    samples: list[TokenSample] = []
    frames: list[Tensor] = []
    latents, rows, columns = spec.grid(shape.frames, shape.height, shape.width)
    size = latents * spec.frame_bytes(rows, columns)
    with ProgressBar("held-out clips", len(chosen), stderr=True) as progress:
        for number in chosen:
            dataset, bucket, row = places[number]
            sample = dataset.read(bucket, row)
            samples.append(sample)
            frames.append(_decoded(sample, shape, video))
            progress.update()
    bits = torch.stack([torch.frombuffer(bytearray(sample.bits[:size]), dtype=torch.uint8) for sample in samples])
    return HeldOut(
        tuple(sample.key for sample in samples),
        tuple(sample.caption for sample in samples),
        bits,
        torch.stack(frames),
        len(places),
    )


def _bucket(found: Sequence[Bucket], shape: Bucket) -> Bucket | None:
    """Return the shortest bucket that has such clips."""
    fitting = [
        each for each in found if (each.height, each.width) == (shape.height, shape.width) and each.frames >= shape.frames
    ]
    return min(fitting, key=lambda each: each.frames, default=None)


def _decoded(sample: TokenSample, shape: Bucket, video: OpenVideo) -> Tensor:
    """Return the frames of a sample, decoded from its source at the times at which they were tokenized."""
    meta = sample.meta
    times = tuple(float(meta["begin"]) + number / float(meta["fps"]) for number in range(shape.frames))
    with video(str(meta["source"]), str(meta["source_digest"])) as path:
        found = next(read_clips(path, [Request(times, shape.height, shape.width, str(meta.get("crop") or ""))]))
    return torch.from_numpy(np.array(found))
