"""Clips of proof_tokenizer.py: Weizmann's people and the shared real videos, for training and held out.

Held out: people 6, 7 and 8 of Weizmann, and the videos that HELD_VIDEOS names (with their copies in other containers).
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.config import CorpusConfig
from pipeline.corpus.listing import find
from pipeline.tokenizer_jobs.clip_sampler import augment
from pipeline.video import iter_frames
from tokenizer.config import AugmentConfig, TrainingBucket

FRAMES, SIDE = 9, 64
RATE, SECONDS = 24.0, 10.0
"""Frames a second and length that are taken of each training video; Weizmann's strips have about this rate."""
STRIDES = (1, 1, 1, 3)
"""Every how many-th frame a training clip of a real video takes, drawn evenly: mostly 24 frames a second, some 8."""
WIDE = 112
"""Side at which the real videos are decoded; training squares are cut from it."""
HELD_PEOPLE = (6, 7, 8)
HELD_VIDEOS = (
    "imageio_cockatoo",
    "intel_eat",
    "intel_learn",
    "intel_school",
    "intel_walk",
    "mdn_flower",
    "mdn_frog",
    "skv_bikes",
)
ROOT = Path(__file__).resolve().parents[1]


def shared() -> Path:
    return Path(os.environ.get("VIDEOAR_SHARED", ROOT.parent / "shared"))


def strips(held: bool) -> list[NDArray[np.uint8]]:
    """Weizmann clips uint8 (T,64,64,3) of the held-out people, or of the others."""
    found = []
    for path in sorted((shared() / "data" / "weizmann64" / "actions").glob("*/*.jpg")):
        if (int(path.stem) // 8 in HELD_PEOPLE) == held:
            strip = np.array(Image.open(path).convert("RGB"))
            count = strip.shape[1] // SIDE
            found.append(strip[:, : count * SIDE].reshape(SIDE, count, SIDE, 3).transpose(1, 0, 2, 3))
    return found


def videos(held: bool) -> list[str]:
    """The shared videos that HELD_VIDEOS names, or the others."""
    listed = [source.source for source in find(CorpusConfig(videos=(str(shared() / "data" / "videos"),)))]
    return [name for name in listed if Path(name).name.startswith(HELD_VIDEOS) == held]


def decoded(name: str, rate: float, side: int, seconds: float) -> NDArray[np.uint8]:
    """The beginning of a video at so many frames a second, uint8 (T,side,side,3)."""
    return np.stack([frame for _, frame in islice(iter_frames(Path(name), rate, side, side), int(seconds * rate))])


class Mixed:
    """Training clips, half from Weizmann's strips and half from the real videos, augmented; a pure function of the step.

    Six people and forty videos are few: without augmentation the training clips reach 30 dB while held-out ones stay at 26.
    """

    def __init__(self, seed: int) -> None:
        self.strips = strips(held=False)
        whole = (decoded(name, RATE, WIDE, SECONDS) for name in videos(held=False))
        self.videos = [strip for strip in whole if len(strip) >= FRAMES]
        self.seed = seed

    def batch(self, step: int, bucket: TrainingBucket, rank: int, world: int) -> Tensor:
        share = bucket.batch // world
        made = []
        for number in range(rank * share, (rank + 1) * share):
            draw = np.random.Generator(np.random.Philox(key=self.seed, counter=[1, 0, number, step]))
            real = (step * bucket.batch + number) % 2 == 1
            kind = self.videos if real else self.strips
            strip = kind[int(draw.integers(len(kind)))]
            span = bucket.frames - 1
            stride = min(int(draw.choice(STRIDES)) if real else 1, (len(strip) - 1) // max(1, span))
            begin = int(draw.integers(len(strip) - stride * span))
            clip = torch.from_numpy(strip[begin : begin + stride * span + 1 : stride])
            varied = AugmentConfig(zoom=clip.shape[1] / 44, contrast=0.3, colour=0.1, brightness=25, backwards=True)
            made.append(augment(clip, SIDE, SIDE, varied, True, draw))
        return torch.stack(made)


def held_people(most: int) -> Tensor:
    """Held-out people's clips uint8 (B,9,64,64,3), one behind the other in each strip, spread over the strips."""
    clips = [strip[i : i + FRAMES] for strip in strips(held=True) for i in range(0, len(strip) - FRAMES + 1, FRAMES)]
    chosen = np.linspace(0, len(clips) - 1, min(most, len(clips))).round().astype(int)
    return torch.from_numpy(np.stack([clips[i] for i in chosen]))


def held_videos(most: int, rate: float) -> Tensor:
    """Clips of the held-out videos (one container of each), as many of each and spread over its first 10 s."""
    first = {Path(name).stem: name for name in reversed(videos(held=True))}
    names = [first[stem] for stem in sorted(first)]
    clips = []
    for name in names:
        strip = decoded(name, rate, SIDE, SECONDS)
        count = max(1, min(most // len(names), len(strip) // FRAMES))
        for begin in np.linspace(0, len(strip) - FRAMES, count).round().astype(int):
            clips.append(strip[begin : begin + FRAMES])
    return torch.from_numpy(np.stack(clips))
