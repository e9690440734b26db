"""Files are opened by their names, as what they are, and open nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline import video
from pipeline.video import VideoError
from pipeline.video.container import DEMUXERS, open_file
from tests.helpers.odd_videos import encode, moving

NAMES = (
    "12:30.mp4",
    "a::b.mp4",
    "http:x.mp4",
    "100%.mp4",
    "img%03d.mp4",
    "pipe:0.mp4",
    "-y.mp4",
    " two  words.mp4",
    "concat:a|b.mp4",
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("sound") / "sound.mp4", moving(6))


@pytest.mark.parametrize("name", NAMES)
def test_names_that_look_like_urls_options_or_patterns_are_names(
    name: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(sound, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert video.probe(name).frames == video.probe(tmp_path / name).frames == 6


@pytest.mark.parametrize("name", ["a%02d.jpg", "a*.png", "{1..2}.png"])
def test_a_picture_is_no_pattern_of_pictures(name: str, tmp_path: Path) -> None:
    for other in ("a00.jpg", "a01.jpg", "ab.png", "1.png", "2.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / other)
    Image.fromarray(np.full((16, 48, 3), 200, np.uint8)).save(tmp_path / name)
    info = video.probe(tmp_path / name)
    assert (info.frames, info.width, info.height) == (1, 48, 16)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile sound.mp4\n",
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nsound.mp4\n#EXT-X-ENDLIST\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet/></Period></MPD>\n',
    ],
    ids=["concat", "hls", "dash"],
)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat", "list.mpd"])
def test_scripts_and_playlists_open_no_other_file(text: str, name: str, sound: Path, tmp_path: Path) -> None:
    shutil.copy(sound, tmp_path / "sound.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(VideoError) as caught:
        video.probe(tmp_path / name)
    assert caught.value.reason == "unreadable" and name in str(caught.value)


def test_no_demuxer_on_the_list_opens_other_files() -> None:
    assert not {
        "hls",
        "dash",
        "concat",
        "imf",
        "webm_dash_manifest",
        "lavfi",
        "rtsp",
        "sdp",
        "tee",
        "v4l2",
        "ffmetadata",
    } & set(DEMUXERS)
    known = {name for formats in av.formats_available for name in formats.split(",")}
    assert {"mov", "matroska", "webm", "avi", "mpegts", "flv", "ogg", "gif", "image2"} <= known & set(DEMUXERS)


def test_a_relative_name_is_taken_from_here(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sound.parent)
    with open_file(os.fspath(sound.name), None) as container:
        assert container.format.name.startswith("mov")


def test_half_a_picture_is_damaged(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        assert video.probe(tmp_path / name).frames == 1
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(VideoError) as caught:
            video.probe(tmp_path / name)
        assert caught.value.reason in ("damaged", "no_frames"), name
