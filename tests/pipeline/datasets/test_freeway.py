"""Freeway's clips against a game that only counts, and against the real one where it is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import freeway
from pipeline.datasets.clip_folder import DataSetError


class Counting:
    """A game whose picture is how often each action was taken."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def cloneState(self) -> list[int]:
        return list(self.taken)

    def restoreState(self, state: list[int]) -> None:
        self.taken = list(state)

    def act(self, action: int) -> None:
        self.taken.append(action)

    def getScreenRGB(self) -> Any:
        return np.full((210, 160, 3), len(self.taken) % 251, dtype=np.uint8)


def test_the_caption_is_the_action_that_is_held() -> None:
    game = Counting()
    names = dict(freeway.ACTIONS)
    seen = set()
    for clip in freeway.clips(game, {"train": 12, "test": 3}, 0):
        held = set(game.taken[-freeway.FRAMES * freeway.SKIP :])
        assert [names[action] for action in held] == [clip.caption]
        assert clip.frames.shape == (20, 64, 64, 3)
        steps = np.diff(clip.frames[:, 0, 0, 0].astype(int)) % 251
        assert set(steps.tolist()) == {freeway.SKIP}
        seen.add(clip.caption)
    assert seen == set(names.values())
    first = [clip.frames for clip in freeway.clips(Counting(), {"train": 2, "test": 1}, 0)]
    again = [clip.frames for clip in freeway.clips(Counting(), {"train": 2, "test": 1}, 0)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_real_game_or_what_it_needs() -> None:
    if importlib.util.find_spec("ale_py") is None:
        with pytest.raises(DataSetError, match=r"pip install 'videoar-pretrain\[games\]'"):
            freeway.game()
        return
    one, two = (list(freeway.clips(freeway.game(), {"train": 2, "test": 1}, 0)) for _ in range(2))
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(one, two, strict=True))
    assert float(np.abs(np.diff(one[0].frames.astype(int), axis=0)).mean()) > 0.2  # cars drive
