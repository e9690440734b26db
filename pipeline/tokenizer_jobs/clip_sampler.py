"""Random training clips for the tokenizer, from raw videos.

In:  names of videos (files or URLs), a rate and a seed.
Out: `VideoClips.batch(step, bucket, rank, world)`: uint8 (b,T,H,W,3), a pure function of its arguments and the files.
Called by: pipeline/tokenizer_jobs/main.py, which hands it to tokenizer/training/train.py.

A clip is (video, first frame k/fps, mirrored or not), drawn from (seed, step, number in the global batch), so the batch of a
step is the same on any number of ranks and after any restart. A video that cannot be decoded, or is too short, is left out
of the draw by a rule that knows only the files; it is named once on the console.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.corpus.fetch import local
from pipeline.tokenizer_jobs.augmentation import augment
from pipeline.video import VideoError, iter_frames, probe, read_frames
from tokenizer.config import AugmentConfig, TrainingBucket

ATTEMPTS = 64
"""Videos drawn for one clip before the corpus counts as unusable for the bucket."""


class ClipError(ValueError):
    """A corpus that gives no clip; the message names the mend."""


class VideoClips:
    """`ClipSource` over video files. Short videos are decoded once a size and kept in memory, up to `cache_mb`."""

    def __init__(
        self,
        videos: Sequence[str],
        fps: float,
        seed: int,
        *,
        cache_mb: float = 512.0,
        flip: bool = True,
        augment: AugmentConfig | None = None,
    ) -> None:
        self.videos, self.fps, self.seed, self.flip = list(videos), fps, seed, flip
        self.augment = augment if augment is not None and augment.active else None
        self._room = int(cache_mb * 1e6)
        self._used = 0
        self._cache: OrderedDict[tuple[str, int, int], NDArray[np.uint8]] = OrderedDict()
        self._frames: dict[str, int] = {}
        self._lock = threading.RLock()

    def batch(self, step: int, bucket: TrainingBucket, rank: int, world: int) -> Tensor:
        """This rank's share of the step's batch, uint8 (b,T,H,W,3). Raises ValueError when the ranks do not divide the batch."""
        if bucket.batch % world:
            raise ClipError(
                f"training batch of {bucket.batch} clips does not divide among {world} ranks; change tokenizer.training.buckets"
            )
        share = bucket.batch // world
        return torch.from_numpy(np.stack([self.clip(step, rank * share + i, bucket) for i in range(share)]))

    def clip(self, step: int, number: int, bucket: TrainingBucket) -> NDArray[np.uint8]:
        """Clip `number` of the global batch of `step`."""
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
        """Frames of the video at the rate; 0 for one that cannot be used."""
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
        """Frames of the clip; with a zoom larger by as much, so that the smallest part of them still has the bucket's pixels."""
        height, width = round(bucket.height * zoom), round(bucket.width * zoom)
        length, size = self._length(video), height * width * 3
        if length * size > self._room // 4:
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
