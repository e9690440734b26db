from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import video
from pipeline.video import Reader, VideoError
from pipeline.video.deinterlacer import Deinterlacer, Moment
from tests.helpers.odd_videos import combing, encode, interlaced, moving

TFF, PROGRESSIVE = "keyint=10:interlaced=1:tff=1:qp=4", "keyint=10:qp=4"


def moments(path: Path) -> list[Moment]:
    """The frames of a file as the decoder gives them."""
    with Reader(path) as reader:
        return list(reader._decoded())


def through(given: list[Moment]) -> list[Moment]:
    deinterlacer = Deinterlacer()
    found = [ready for moment in given for ready in deinterlacer.take(moment)]
    return [*found, *deinterlacer.flush()]


def pixels(moment: Moment) -> np.ndarray:
    return moment.frame.to_ndarray(format="gray")


@pytest.mark.parametrize("first", ["tff", "bff"])
def test_an_interlaced_video_is_read_without_combs_one_picture_a_frame(tmp_path: Path, first: str) -> None:
    path = encode(tmp_path / "i.mp4", interlaced(20), fps=25, x264=f"keyint=10:interlaced=1:{first}=1:qp=4")
    raw = moments(path)
    assert all(moment.interlaced for moment in raw) and np.mean([combing(pixels(moment)) for moment in raw]) > 5
    shown = list(video.iter_frames(path, height=64, width=96))
    assert [time for time, _ in shown] == [moment.time for moment in raw], "as many, at the same times"
    assert np.mean([combing(image) for _, image in shown]) < 0.5
    info = video.probe(path)
    assert (info.frames, info.fps) == (20, pytest.approx(25)) and info.seconds == pytest.approx(0.8)


def test_a_progressive_video_goes_through_untouched(tmp_path: Path) -> None:
    raw = moments(encode(tmp_path / "p.mp4", moving(6), x264=PROGRESSIVE))
    deinterlacer = Deinterlacer()
    for moment in raw:
        (same,) = deinterlacer.take(moment)
        assert same is moment, "at once, not one frame late"
    assert list(deinterlacer.flush()) == []


def test_a_picture_is_a_function_of_three_frames(tmp_path: Path) -> None:
    """Interlaced and progressive parts in turn, in pictures of two shapes: what comes out does not depend on where it began."""
    fields = moments(encode(tmp_path / "i.mp4", interlaced(12), x264=TFF))
    whole = moments(encode(tmp_path / "p.mp4", moving(6), x264=PROGRESSIVE))
    small = moments(encode(tmp_path / "s.mp4", interlaced(5, 48, 64), x264=TFF))
    mixed = [*whole[:3], *fields[:4], *whole[3:], *fields[4:], *small]
    found = [pixels(moment) for moment in through(mixed)]
    assert len(found) == len(mixed)
    for number, moment in enumerate(mixed):
        if moment.interlaced:
            assert combing(found[number]) < combing(pixels(moment)) / 4
        else:
            assert np.array_equal(found[number], pixels(moment))
    for begin in range(len(mixed) - 1):
        again = [pixels(moment) for moment in through([mixed[begin]._replace(wanted=False), *mixed[begin + 1 :]])]
        assert all(np.array_equal(a, b) for a, b in zip(again, found[begin + 1 :], strict=True)), f"from {begin} on"


def test_the_frames_before_a_damage_are_all_given(tmp_path: Path) -> None:
    path = encode(tmp_path / "cut.nut", interlaced(60), x264=TFF)
    whole, ends, frames = path.read_bytes(), set(), 0
    for share in range(8, 40):
        path.write_bytes(whole[: share * len(whole) // 40])
        seen, raw = 0, 0
        with Reader(path) as reader:
            try:
                for _ in reader.frames():
                    seen += 1
            except VideoError as error:
                ends.add(error.reason)
        with Reader(path) as reader:
            try:
                for _ in reader._decoded():
                    raw += 1
            except VideoError:
                pass
        assert seen == raw
        frames += raw
    assert ends == {"damaged"} and frames > 100


def test_pictures_too_small_for_the_filter_stay_as_they_are(tmp_path: Path) -> None:
    (raw, *_) = moments(encode(tmp_path / "i.mp4", interlaced(2), x264=TFF))
    for size, taken in ((16, True), (14, False)):
        frame = raw.frame.reformat(width=size, height=size, format="yuv410p")
        assert frame.interlaced_frame
        assert raw._replace(frame=frame).interlaced is taken
        assert len(through([raw._replace(frame=frame)])) == 1
