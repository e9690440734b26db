"""The Weizmann actions as strips of 64x64 frames: people that walk, wave or bend, some of them held out.

In:  a folder ACTION/ID.jpg, frames side by side; ID // 8 is the person.
Out: clips of whole strips, 25 frames a second, people 6, 7 and 8 in the split test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.datasets.clip_folder import DataSetError, MadeClip

SIDE, FPS, HELD = 64, 25.0, (6, 7, 8)


def strips(folder: Path) -> list[Path]:
    """Return the strips in a folder, at any depth. Raises DataSetError if there are none."""
    found = sorted(path for path in folder.glob("**/*.jpg") if path.stem.isdecimal())
    if not found:
        raise DataSetError(f"{folder}: no strips ACTION/ID.jpg of 64x64 frames here; name the folder that holds the actions")
    return found


def clips(paths: list[Path]) -> Iterator[MadeClip]:
    """Yield a clip per strip. Raises DataSetError for a strip that is no picture of frames."""
    for path in paths:
        try:
            strip = np.array(Image.open(path).convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise DataSetError(f"{path}: cannot be read as a picture ({error}); copy it again") from error
        count = strip.shape[1] // SIDE
        if strip.shape[0] != SIDE or count < 1:
            raise DataSetError(f"{path}: {strip.shape[1]}x{strip.shape[0]} pixels, and a strip is 64 pixels high")
        frames = strip[:, : count * SIDE].reshape(SIDE, count, SIDE, 3).transpose(1, 0, 2, 3)
        split = "test" if int(path.stem) // 8 in HELD else "train"
        yield MadeClip(
            f"{split}/{path.parent.name}-{path.stem}.mp4",
            f"a person does action {path.parent.name}",
            np.ascontiguousarray(frames),
        )
