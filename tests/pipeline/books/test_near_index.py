"""Near copies are found, and other videos are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis.fingerprint import RATE
from pipeline.books.near_index import NearIndex
from tests.helpers.near_copies import THRESHOLD, Bars, copy, fingerprints, grey


def test_copies_of_the_bundled_clips_are_found_and_others_are_not(clips: Path, tmp_path: Path) -> None:
    index = NearIndex()
    names = ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"]
    for name in names:
        own = grey(clips / name)
        assert index.find(own[: 3 * RATE])[1] < THRESHOLD, f"{name} is like none before it"
        index.add(name, own)
    for name in names:
        source, score = index.find(grey(copy(clips / name, tmp_path / name))[: 3 * RATE])
        assert source == name and score >= THRESHOLD, (name, source, score)
    for name in names[::2]:
        halved = grey(copy(clips / name, tmp_path / f"half-{name}", step=2))
        for begin in range(0, len(halved) - 3 * RATE + 1, RATE):
            source, score = index.find(halved[begin : begin + 3 * RATE])
            assert source == name and score >= THRESHOLD, ("half the frame rate", begin, name, source, score)
    source, score = index.find(grey(clips / "carphone_distorted.mp4"))
    assert source == "carphone_pristine.mp4" and score >= THRESHOLD
    assert index.find(grey(clips / "bikes.mp4")[: RATE // 2]) == ("", 0.0), "too short to say"


@pytest.mark.parametrize("bars", [(36, 36, 0, 0), (0, 0, 60, 60), (50, 20, 10, 0)])
def test_copies_with_black_bars_are_found_both_ways(clips: Path, tmp_path: Path, bars: Bars) -> None:
    names = ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"]
    whole = {name: fingerprints(clips / name) for name in names}
    barred = {name: fingerprints(copy(clips / name, tmp_path / name, bars=bars)) for name in names}
    assert all(len(found) == 2 for found in barred.values()), "the bars are seen"
    for first, second in ((whole, barred), (barred, whole)):
        index = NearIndex()
        for name in names:
            for one in first[name]:
                index.add(name, one)
        for name in names:
            begin = 0 if second is barred else RATE  # the copies lack the first 0.8 s
            source, score = max((index.find(one[begin : begin + 3 * RATE]) for one in second[name]), key=lambda f: f[1])
            assert source == name and score >= THRESHOLD, (name, source, score)
    alone = NearIndex()
    for name in names:
        for one in barred[name]:
            assert alone.find(one[: 3 * RATE])[1] < THRESHOLD, f"{name} with bars is like no other with the same bars"
        for one in barred[name]:
            alone.add(name, one)


def test_the_shared_clips(shared: Path, tmp_path: Path) -> None:
    """Many show one person in one room; only four films come in several encodings."""
    folder = shared / "data" / "videos"
    names = sorted(p.name for p in folder.iterdir() if p.stat().st_size < 700_000 and p.suffix in (".mp4", ".mkv", ".webm"))
    index, found = NearIndex(), {}
    for name in names:
        own = fingerprints(folder / name)
        source, score = max((index.find(one) for one in own), key=lambda f: f[1])
        if score >= THRESHOLD:
            found[name] = source
        for one in own:
            index.add(name, one)
    assert set(found) <= {"mdn_rabbit320.webm", "mdn_flower.webm", "mdn_stream-of-water.webm", "skv_carphone_pristine.mp4"}, (
        found
    )
    copied = [
        n for n in ("intel_book.mkv", "intel_walk.mkv", "mdn_frog.webm", "skv_bikes.mp4", "intel_sister.mkv") if n in names
    ]
    for name in copied:
        source, score = index.find(grey(copy(folder / name, tmp_path / f"{name}.mp4")))
        assert source == name and score >= THRESHOLD, (name, source, score)
        barred = fingerprints(copy(folder / name, tmp_path / f"{name}-barred.mp4", bars=(24, 24, 0, 0)))
        source, score = max((index.find(one) for one in barred), key=lambda f: f[1])
        assert len(barred) == 2 and source == name and score >= THRESHOLD, ("with bars", name, source, score)


@pytest.mark.parametrize("power", [0.0, 30.0])
def test_still_and_noise(power: float) -> None:
    """Two stills agree only when they are the same; noise agrees with nothing."""
    rng = np.random.default_rng(0)
    still = np.broadcast_to(rng.integers(40, 200, 64), (24, 64))
    first = (still + rng.normal(0, power, still.shape)).clip(0, 255).astype(np.uint8)
    second = (still + rng.normal(0, power, still.shape)).clip(0, 255).astype(np.uint8)
    index = NearIndex()
    index.add("first", first)
    assert (index.find(second)[1] >= THRESHOLD) == (power == 0.0)
    other = np.roll(first, 1, axis=1)
    assert index.find(other)[1] < THRESHOLD
