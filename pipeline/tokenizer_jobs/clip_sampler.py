"""Random training clips for the tokenizer, from raw videos, augmented where the configuration asks for it.

In:  names of videos (files or URLs), a frame rate, a seed, the `augment` section.
Out: `ClipSampler.batch(step, bucket, rank, world)`: uint8 (b,T,H,W,3), a pure function of its arguments and the files.

A clip is (video, first frame k/fps, mirrored or not), drawn from (seed, step, number in the global batch), so the batch of a step
is the same on any number of ranks and after any restart. A video that cannot be decoded or is too short is left out of the draw by
a rule that depends on the files alone; it is reported once on the console.

A network that sees a small corpus without augmentation learns it by heart: on 48 strips of six people training clips reached 30 dB
while held-out ones stayed below 26; with augmentation both reach 28 and more (docs/log.md).
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cluster.runtime.memory import free_memory
from pipeline.corpus.fetch import local
from pipeline.video import VideoError, iter_frames, probe, read_frames
from tokenizer.config import AugmentConfig, TrainingBucket

ATTEMPTS = 64
"""Videos drawn for one clip until the corpus counts as unusable for the bucket."""

CACHE_BYTES = 512_000_000
"""Memory for decoded videos of a process, at the least."""
SHORT_BYTES = 128_000_000
"""Largest video that is decoded whole for one clip of it, since others will follow."""


def cache_room(ranks: int) -> int:
    """Return the bytes that each of a host's ranks may fill with decoded videos: an eighth of what is free, at least CACHE_BYTES.

    A corpus that does not fit is decoded anew again and again: on two cores that took 40 % of them (docs/log.md).
    """
    return max(CACHE_BYTES, free_memory() // 8 // ranks)


class ClipError(ValueError):
    """A corpus or bucket that yields no clip; the message says how to fix it."""


class ClipSampler:
    """`ClipSource` over video files. Short videos are decoded once per size and kept in memory, up to `cache_bytes`.

    flip: half of the clips are mirrored.
    """

    def __init__(
        self,
        videos: Sequence[str],
        fps: float,
        seed: int,
        *,
        cache_bytes: int = CACHE_BYTES,
        flip: bool = True,
        augment: AugmentConfig | None = None,
    ) -> None:
        self.videos, self.fps, self.seed, self.flip = list(videos), fps, seed, flip
        self.augment = augment if augment is not None and augment.active else None
        self._room = cache_bytes
        self._used = 0
        self._cache: OrderedDict[tuple[str, int, int], NDArray[np.uint8]] = OrderedDict()
        self._frames: dict[str, int] = {}
        self._lock = threading.RLock()

    def batch(self, step: int, bucket: TrainingBucket, rank: int, world: int) -> Tensor:
        """Return this rank's share of the step's batch, uint8 (b,T,H,W,3). Raises ClipError when the ranks do not divide it."""
        if bucket.batch % world:
            raise ClipError(
                f"a training batch of {bucket.batch} clips does not divide among {world} ranks; change tokenizer.training.buckets"
            )
        share = bucket.batch // world
        return torch.from_numpy(np.stack([self.clip(step, rank * share + i, bucket) for i in range(share)]))

    def clip(self, step: int, number: int, bucket: TrainingBucket) -> NDArray[np.uint8]:
        """Return clip `number` of the global batch of `step`, uint8 (T,H,W,3)."""
        draw = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, number, step]))
        for _ in range(ATTEMPTS):
            video = self.videos[int(draw.integers(len(self.videos)))]
            place, mirrored = float(draw.random()), bool(draw.random() < 0.5)
            starts = self._length(video) - bucket.frames + 1
            if starts < 1:
                continue
            zoom = 1.0 if self.augment is None else self.augment.zoom
            try:
                frames = self._read(video, int(place * starts), bucket, zoom)
            except VideoError as error:
                self._refuse(video, str(error))
                continue
            if self.augment is not None:
                whole = torch.from_numpy(frames)
                return augment(whole, bucket.height, bucket.width, self.augment, self.flip, draw).numpy()
            return np.ascontiguousarray(frames[:, :, ::-1]) if self.flip and mirrored else frames
        raise ClipError(
            f"no clip of {bucket.frames} frames at {self.fps} fps among {ATTEMPTS} draws from {len(self.videos)} videos: "
            "name longer videos under corpus.videos, or fewer frames or a higher rate under tokenizer.training"
        )

    def _length(self, video: str) -> int:
        """Return the number of frames at the frame rate; 0 for a video that cannot be used."""
        with self._lock:
            known: int | None = self._frames.get(video)
        if known is not None:
            return known
        try:
            with local(video) as path:
                info = probe(path)
        except VideoError as error:
            self._refuse(video, str(error))
            return 0
        count: int = math.floor(info.times[-1] * self.fps + 1e-6) + 1
        with self._lock:
            self._frames[video] = count
        return count

    def _refuse(self, video: str, message: str) -> None:
        with self._lock:
            if self._frames.get(video) != 0:
                self._frames[video] = 0
                print(f"left out: {message}", flush=True)

    def _read(self, video: str, start: int, bucket: TrainingBucket, zoom: float) -> NDArray[np.uint8]:
        """Return the frames of a clip, `zoom` times as large as the bucket: the smallest crop of them still has its pixels."""
        height, width = round(bucket.height * zoom), round(bucket.width * zoom)
        length, size = self._length(video), height * width * 3
        if length * size > min(SHORT_BYTES, self._room):
            times = [(start + i) / self.fps for i in range(bucket.frames)]
            with local(video) as path:
                return read_frames(path, times, height, width)
        key = (video, height, width)
        with self._lock:
            whole = self._cache.get(key)
            if whole is None:
                with local(video) as path:
                    frames = iter_frames(path, self.fps, height, width)
                    whole = np.stack([picture for _, (_, picture) in zip(range(length), frames)])
                self._cache[key] = whole
                self._used += whole.nbytes
                while self._used > self._room:
                    self._used -= self._cache.popitem(last=False)[1].nbytes
            self._cache.move_to_end(key)
        if start + bucket.frames > len(whole):
            raise VideoError("too_short", f"{video}: ends before {(start + bucket.frames) / self.fps:.2f} s")
        return whole[start : start + bucket.frames]


def augment(
    clip_THWC: Tensor, height: int, width: int, config: AugmentConfig, mirror: bool, draw: np.random.Generator
) -> Tensor:
    """Return a random crop of the clip at height x width pixels, in other light, mirrored or backwards, uint8 (T,h,w,3).

    Every frame of a clip is treated alike. mirror: whether clips may be mirrored.
    """
    rows, columns = clip_THWC.shape[1:3]
    part = int(draw.integers(round(columns / config.zoom), columns + 1))
    high = min(rows, round(part * height / width))
    top, left = int(draw.integers(rows - high + 1)), int(draw.integers(columns - part + 1))
    x_T3HW = clip_THWC[:, top : top + high, left : left + part].permute(0, 3, 1, 2).float()
    x_T3HW = F.interpolate(x_T3HW, (height, width), mode="bilinear", antialias=True, align_corners=False)
    contrast = float(draw.uniform(1 - config.contrast, 1 + config.contrast))
    gain = contrast * torch.from_numpy(draw.uniform(1 - config.colour, 1 + config.colour, (1, 3, 1, 1))).float()
    light = float(draw.uniform(-config.brightness, config.brightness))
    x_T3HW = ((x_T3HW - 128) * gain + 128 + light).round().clamp(0, 255)
    backwards, mirrored = (draw.random() < 0.5 for _ in range(2))
    axes = [axis for axis, turned in ((0, backwards and config.backwards), (3, mirrored and mirror)) if turned]
    return (x_T3HW.flip(axes) if axes else x_T3HW).byte().permute(0, 2, 3, 1).contiguous()
