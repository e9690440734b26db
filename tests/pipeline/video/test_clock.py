"""Times from what files stamp their frames with: rising, each frame once, jumps told."""

from __future__ import annotations

from fractions import Fraction as F
from pathlib import Path

import pytest

from pipeline import video
from pipeline.video.clock import REORDER, Clock, Stamp, is_regular, is_shuffled, usual_step
from tests.helpers.fakes import timed

STEP = F(1, 24)


def times(stamps: list[F | None], **settings: bool) -> tuple[list[float | None], Clock]:
    clock = Clock(STEP, **settings)
    for stamp in stamps:
        clock.packet(Stamp(stamp, stamp))
    return [None if found is None else float(found) for found in map(clock.frame, stamps)], clock


def at(*numbers: float) -> list[F | None]:
    return [F(number).limit_denominator(1000) for number in numbers]


def test_a_sound_clock_is_believed() -> None:
    stamps = at(5, 5.04, 5.09, 5.5, 7.4)
    found, clock = times(stamps)
    assert found == [float(stamp or 0) for stamp in stamps] and (clock.jumps, clock.dropped, clock.first) == (0, 0, 5)


def test_stamps_in_the_order_of_decoding_are_given_out_in_order() -> None:
    """AVI: frames come out as 1, 3, 4, 2, since the container can only stamp the order of decoding."""
    clock = Clock(STEP, shuffled=True)
    for number in range(8):
        clock.packet(Stamp(F(number), F(number)))
    assert [clock.frame(F(number)) for number in (0, 2, 3, 1, 5, 6, 4, 7)] == list(range(8))
    assert (clock.jumps, clock.dropped) == (0, 0)


def test_a_frame_without_a_stamp_comes_one_interval_later() -> None:
    found, clock = times([*at(0, 0.125, 0.25), None, *at(0.5)])
    assert found == [0, 0.125, 0.25, 0.375, 0.5] and clock.jumps == 0
    assert times([None, None])[0] == [0, float(STEP)]


@pytest.mark.parametrize("far", [300.0, 2.5, -5.0, -1.5])
def test_a_jump_either_way_is_closed_up_and_told(far: float) -> None:
    before, after = [2 + i / 8 for i in range(10)], [2 + i / 8 + far for i in range(10, 20)]
    found, clock = times(at(*before, *after))
    assert found == [2 + i / 8 for i in range(20)] and (clock.jumps, clock.dropped) == (1, 0)


def test_one_frame_far_off_is_two_jumps_and_loses_nothing() -> None:
    found, clock = times(at(0, 0.125, 0.25, 300, 0.5, 0.625))
    assert found == [0, 0.125, 0.25, 0.375, 0.5, 0.625] and (clock.jumps, clock.dropped) == (2, 0)


def test_slow_pictures_are_no_jumps() -> None:
    clock = Clock(F(5))
    assert [clock.frame(F(5 * i)) for i in (0, 1, 2, 3, 6)] == [0, 5, 10, 15, 30] and clock.jumps == 0
    assert clock.frame(F(30 + 8 * 5 + 1)) == 35 and clock.jumps == 1


def test_glitches_are_dropped_and_counted_until_they_are_many() -> None:
    found, clock = times(at(0, 0.125, 0.125, 0.25, 0.2, 0.375))
    assert found == [0, 0.125, None, 0.25, None, 0.375] and (clock.jumps, clock.dropped) == (0, 2)
    found, clock = times(at(0, 0.125, 0.25, 0.375, 0.0, 0.125, 0.25, 0.375))
    assert found == [0, 0.125, 0.25, 0.375, None, None, 0.5, 0.625] and (clock.jumps, clock.dropped) == (1, 2)


def stamps(pts: list[float | None], **more: bool) -> list[Stamp]:
    return [Stamp(None if each is None else F(each), F(number), **more) for number, each in enumerate(pts)]


def test_packets_that_rise_although_frames_are_reordered_are_shuffled() -> None:
    rising, reordered = stamps([0, 1, 2, 3, 4]), stamps([0, 3, 1, 2, 4])
    assert is_shuffled(rising, reorders=True)
    assert not is_shuffled(rising, reorders=False) and not is_shuffled(reordered, reorders=True)
    assert not is_shuffled(stamps([0, 1]), reorders=True), "two packets prove nothing"


def test_only_a_clock_that_needs_no_repair_is_regular() -> None:
    sound = [float(each) for group in range(0, 80, 4) for each in (group, group + 3, group + 1, group + 2)]
    assert is_regular(stamps(sound))
    assert not is_regular(stamps([*sound, None]))
    assert not is_regular(stamps([*sound, 80 + 2.5])), "a picture stands still for too long"
    assert not is_regular(stamps([*sound, 5])), "it steps back"
    assert not is_regular(stamps([*sound[:20], sound[3], *sound[20:]])), "two frames at one time"
    assert not is_regular(stamps(sound, corrupt=True))
    assert not is_regular(stamps([*range(1, 2 + REORDER), 0])), "further back than decoders reorder"


def test_a_show_of_slides_keeps_its_times(tmp_path: Path) -> None:
    """A picture every five seconds in a file that is named as one of thirty frames a second: no clock jumps."""
    info = video.probe(timed(tmp_path / "slides.mkv", [5.0 * number for number in range(8)]))
    assert info.times.tolist() == [5.0 * number for number in range(8)]
    assert usual_step(stamps([0, 5, 10]), F(1, 30)) == F(1, 30), "too few to tell"
    assert usual_step(stamps([0, 0.125, 0.25, 300, 0.375, 0.5]), F(1, 30)) == F(1, 8), "an outlier is no rule"
