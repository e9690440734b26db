"""Atari Freeway: clips of real game frames whose caption tells what the player does.

In:  the package ale-py (extra `games`), which holds the game.
Out: clips of 20 frames, 15 a second (every fourth frame of the game), 64x64; clip i of a split is a function of (seed, split, i).

A clip begins after 10 to 600 frames of play; during the clip one action is held, and the caption names it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from pipeline.datasets.clip_folder import DataSetError, MadeClip

SIDE, FRAMES, FPS, SKIP = 64, 20, 15.0, 4
ACTIONS = ((2, "the chicken walks up the road"), (0, "the chicken stands still"), (5, "the chicken walks down the road"))
"""The game's actions (up, none, down) and what they are called."""
SPLITS = ("train", "test")


def game() -> Any:
    """Return the emulator with the game in it. Raises DataSetError if the package is not installed."""
    try:
        ale, roms = importlib.import_module("ale_py"), importlib.import_module("ale_py.roms")
    except ImportError as error:
        raise DataSetError("Freeway needs the package ale-py: pip install 'videoar-pretrain[games]'") from error
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    emulator = ale.ALEInterface()
    emulator.setInt("random_seed", 1)
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(roms.get_rom_path("freeway"))
    return emulator


def clips(emulator: Any, counts: dict[str, int], seed: int) -> Iterator[MadeClip]:
    """Yield the clips of both splits. emulator: at the start of the game."""
    start = emulator.cloneState()
    for number, split in enumerate(SPLITS):
        for clip in range(counts[split]):
            draw = np.random.default_rng((seed, number, clip))
            emulator.restoreState(start)
            for _ in range(int(draw.integers(10, 600))):
                emulator.act(ACTIONS[0][0] if draw.random() < 0.7 else ACTIONS[1][0])
            action, caption = ACTIONS[int(draw.integers(len(ACTIONS)))]
            frames = []
            for _ in range(FRAMES):
                screen = Image.fromarray(emulator.getScreenRGB())
                frames.append(np.asarray(screen.resize((SIDE, SIDE), Image.Resampling.BOX)))
                for _ in range(SKIP):
                    emulator.act(action)
            yield MadeClip(f"{split}/{clip:06d}.mp4", caption, np.stack(frames))
