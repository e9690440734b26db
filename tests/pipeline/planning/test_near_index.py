from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.runtime.atomic_files import write_json
from pipeline import video
from pipeline.analysis.fingerprint import FINE, RATE, SIDE, Fingerprint, Fingerprinter, crop_fingerprint
from pipeline.analysis.scan import ScanOptions, scan
from pipeline.config import CutConfig, DecodeLimits, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.planning.merge import merge
from pipeline.planning.near_index import NearIndex
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, SourceVideo
from pipeline.shards.manifest import Manifest

THRESHOLD = 0.9


def grey(path: Path) -> Fingerprint:
    return scan(path, ScanOptions(CutConfig(method="none"))).fingerprint


Bars = tuple[int, int, int, int]


def fingerprints(path: Path) -> list[Fingerprint]:
    """The fingerprint of a video, and where it has black bars that of the picture between them."""
    found = scan(path, ScanOptions(CutConfig(method="none")))
    return [one for one in (found.fingerprint, found.inner_fingerprint) if len(one)]


def copy(path: Path, out: Path, *, height: int = 180, skip: float = 0.8, step: int = 1, bars: Bars = (0, 0, 0, 0)) -> Path:
    """Cut the beginning off, make it smaller, keep every step-th frame, add bars (top, bottom, left, right), encode it anew."""
    info = video.probe(path)
    fps = round(info.fps)
    width = round(height * info.width / info.height / 2) * 2
    frames = [image for time, image in video.iter_frames(path, fps=fps, height=height, width=width) if time >= skip]
    top, bottom, left, right = bars
    padded = np.pad(np.stack(frames[::step]), ((0, 0), (top, bottom), (left, right), (0, 0)))
    video.write_video(out, padded, fps / step)
    return out


def test_print_is_what_is_seen_around_each_eighth_of_a_second(clips: Path) -> None:
    found = grey(clips / "bikes.mp4")
    assert found.shape == (10 * RATE, 64)
    image = video.read_frames(clips / "bikes.mp4", [3.5], 272, 640)[0].mean(axis=2)
    rough = image.reshape(8, 34, 8, 80).mean(axis=(1, 3)).reshape(-1)
    assert np.corrcoef(rough, found[28])[0, 1] > 0.98


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


def test_the_part_of_a_fine_print_is_the_print_of_the_part() -> None:
    """Also where the part's edges cut a fine line in two."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.uniform(40, 220, (5, 5)), (240, 160), interpolation=cv2.INTER_CUBIC).clip(20, 235)
    for top, left in ((0, 0), (37, 0), (11, 53)):
        frame = np.zeros((160 + 2 * top, 240 + 2 * left))
        frame[top : top + 160, left : left + 240] = smooth
        fine = np.rint(cv2.resize(frame, (FINE, FINE), interpolation=cv2.INTER_AREA)).astype(np.uint8).reshape(1, -1)
        height, width = frame.shape
        found = crop_fingerprint(fine, (top / height, (top + 160) / height), (left / width, (left + 240) / width))
        wanted = cv2.resize(smooth, (SIDE, SIDE), interpolation=cv2.INTER_AREA).reshape(-1)
        assert np.abs(found[0] - wanted).max() <= 6 and np.abs(found[0] - wanted).mean() <= 1.5


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


@pytest.mark.parametrize("frames", [5, 17])
def test_near_copies_are_refused_span_by_span_across_generations(clips: Path, tmp_path: Path, frames: int) -> None:
    config = PipelineConfig(buckets=(Bucket(frames=frames, height=32, width=32),), near_dedup=THRESHOLD, min_free_gb=0)
    manifest = Manifest(tmp_path / "shards")
    again = copy(clips / "carphone_pristine.mp4", tmp_path / "again.mp4", skip=0.5)
    barred = copy(clips / "carphone_pristine.mp4", tmp_path / "barred.mp4", bars=(30, 30, 0, 0))
    with DecoderProcess(DecodeLimits()) as decoder:
        for path in (clips / "carphone_pristine.mp4", again, barred, clips / "bigbuckbunny.mp4"):
            manifest.begin_generation([SourceVideo(str(path))])
            write_json(manifest.part(0), [plan_video(SourceVideo(str(path)), config, decoder).plain()])
            merge(manifest, config, 1)
    near = [r for r in manifest.rejects() if r.reason == "near_copy"]
    assert (
        {r.source for r in near} == {str(again), str(barred)}
        and near[0].begin == 0.0
        and near[0].scores["agreement"] >= THRESHOLD
    )
    assert {c.source for g in range(manifest.groups()) for c in manifest.clips(g)} == {
        str(clips / "carphone_pristine.mp4"),
        str(clips / "bigbuckbunny.mp4"),
    }


def test_a_print_depends_on_times_not_on_the_number_of_frames() -> None:
    """Motion without end at 50, 25, 12.5 and 8 frames a second, and at changing intervals: nearly one fingerprint."""

    def made(times: list[float]) -> Fingerprint:
        fingerprinter = Fingerprinter()
        for time in times:
            wave = np.sin(2 * np.pi * (0.4 * time + np.arange(SIDE * SIDE) / 40))
            fingerprinter.add(time, np.rint(120 + 100 * wave).astype(np.uint8))
        return fingerprinter.finish()

    reference = made([i / 50 for i in range(200)]).astype(float)
    assert reference.shape == (32, 64)
    uneven = np.cumsum([0.0, *np.random.default_rng(0).uniform(0.02, 0.1, 80)])
    for times in (
        [i / 25 for i in range(100)],
        [i / 12.5 for i in range(50)],
        [i / 8 for i in range(32)],
        [*uneven[uneven < 4]],
    ):
        other = made([float(t) for t in times]).astype(float)
        assert len(other) == 32 and np.abs(other - reference)[1:-1].max() <= 6
    held = made([0.0, 2.0, 2.04])
    assert (held[:15] == held[0]).all() and (held[16] != held[0]).any(), "what stands still is not blended over seconds"
    assert made([0.0]).shape == (1, 64) and made([]).shape == (0, 64)


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
