from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import video
from pipeline.video import picture as picture_module
from pipeline.video.tone_map import tone_map
from tests.helpers.odd_videos import encode, high_range, moving

LIGHT = np.array([0, 1, 5, 20, 50, 100, 203, 400, 1000, 4000])
"""Candela per square metre; 203 is the white of a sheet of paper (ITU-R BT.2408)."""
MASTERED = ":hdr10=1:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(40000000,1):max-cll=4000,400"


def pq(light: np.ndarray) -> np.ndarray:
    """Luma of 10 bits, limited range, by SMPTE ST 2084."""
    power = (light / 10000) ** 0.1593017578125
    return np.round(64 + 876 * ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375).astype(np.uint16)


def steps(path: Path) -> np.ndarray:
    """The grey of each step, after a check that it is grey."""
    image = video.read_frames(path, [0.0], 64, 64 * len(LIGHT))[0]
    found = image[32, 32::64].astype(int)
    assert np.abs(np.diff(found, axis=1)).max() <= 1, "grey stays grey"
    return found[:, 0]


def test_pq_is_shown_as_on_an_ordinary_screen(tmp_path: Path) -> None:
    code = np.repeat(pq(LIGHT), 64)[None].repeat(64, 0)
    path = high_range(tmp_path / "pq.mp4", code, "smpte2084")
    found = steps(path)
    assert found[0] == 0 and list(found[-2:]) == [255, 255] and np.all(np.diff(found[:-1]) > 0)
    paper = int(found[LIGHT == 203][0])
    assert 160 <= paper <= 200, "as coded it would be 146; BT.2408 puts it at three quarters of the signal"
    assert np.array_equal(steps(high_range(tmp_path / "m.mp4", code, "smpte2084", metadata=MASTERED)), found)
    assert video.probe(path).colour == "bt2020/limited/pq"
    with video.Reader(path) as reader:
        _, frame = next(reader.frames())
        assert abs(int(video.thumbnail(frame, 8, 8 * len(LIGHT))[4, 8 * 6 + 4, 0]) - paper) <= 1, "scores see the same picture"


def test_hlg_is_shown_as_on_an_ordinary_screen(tmp_path: Path) -> None:
    signal = np.linspace(0, 1, len(LIGHT))
    code = np.repeat(np.round(64 + 876 * signal), 64)[None].repeat(64, 0).astype(np.uint16)
    found = steps(high_range(tmp_path / "hlg.mp4", code, "arib-std-b67"))
    assert found[0] == 0 and found[-1] >= 254 and np.all(np.diff(found) > 0)


def test_each_pixel_is_mapped_by_itself() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 65536, (301, 457, 3), dtype=np.uint16)
    whole = tone_map("pq").apply(image)
    assert whole.shape == image.shape and whole.dtype == np.uint8
    assert np.array_equal(tone_map("pq").apply(image[100:103, 200:217]), whole[100:103, 200:217])


@pytest.mark.parametrize("colours", ["", ":colorprim=bt2020:transfer=bt2020-10:colormatrix=bt2020nc"])
def test_ordinary_video_is_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colours: str) -> None:
    path = encode(tmp_path / "sdr.mp4", moving(3), x264=f"keyint=10{colours}")

    def never(transfer: str) -> None:
        raise AssertionError(transfer)

    monkeypatch.setattr(picture_module, "tone_map", never)
    assert video.read_frames(path, [0.0], 32, 32).shape == (1, 32, 32, 3)
