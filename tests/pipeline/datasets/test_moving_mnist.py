"""The standard recipe on made digits: pure, bouncing, with held-out digits of its own."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.datasets.moving_mnist import DIGIT, FRAMES, SIDE, clips, moving, parsed


def table() -> bytes:
    """Sixty digits of each of two kinds; a digit's grey tells its number among its kind."""
    rows = []
    for label in (3, 7):
        for number in range(60):
            rows.append(",".join([f"{number + 1:.4f}"] * (DIGIT * DIGIT)) + f",{label}.0")
    return "\n".join(rows).encode()


def test_clips_are_a_function_of_seed_split_and_number() -> None:
    found = parsed(table())
    assert found[0].shape == (120, 28, 28) and found[1].tolist() == [3] * 60 + [7] * 60
    few = {clip.name: clip for clip in clips(found, {"train": 3, "test": 4}, 0)}
    many = {clip.name: clip for clip in clips(found, {"train": 5, "test": 4}, 0)}
    other = {clip.name: clip for clip in clips(found, {"train": 3, "test": 4}, 1)}
    assert all(np.array_equal(few[name].frames, many[name].frames) for name in few)
    assert any(not np.array_equal(few[name].frames, other[name].frames) for name in few)
    assert few["train/000000.mp4"].caption in ("the digits 3 and 3", "the digits 3 and 7", "the digits 7 and 7")


def test_test_clips_show_digits_of_their_own() -> None:
    made = list(clips(parsed(table()), {"train": 40, "test": 40}, 0))
    greys = {
        split: {int(v) for clip in made if clip.name.startswith(split) for v in np.unique(clip.frames)} - {0}
        for split in ("train", "test")
    }
    assert max(greys["train"]) <= 10 < min(greys["test"])  # the last 50 of each kind are held out


def test_digits_move_straight_and_bounce_inside() -> None:
    picture = np.full((1, DIGIT, DIGIT), 200, dtype=np.uint8)
    for seed in range(20):
        video = moving(picture, np.random.default_rng(seed))[..., 0]
        assert video.shape == (FRAMES, SIDE, SIDE) and all(int((frame == 200).sum()) == DIGIT * DIGIT for frame in video)
        tops = [int(np.flatnonzero(frame.any(1))[0]) for frame in video]
        lefts = [int(np.flatnonzero(frame.any(0))[0]) for frame in video]
        steps = np.hypot(np.diff(tops), np.diff(lefts))
        free = (SIDE - DIGIT) * 0.1
        assert steps.max() <= free + 1.5 and np.median(steps) == pytest.approx(free, abs=1.5)
        assert min(tops + lefts) >= 0 and max(tops + lefts) <= SIDE - DIGIT
