from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus import video_list as module
from pipeline.corpus.video_list import Sources, VideoList, hashes
from pipeline.records import SourceVideo


def test_videos_come_back_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    rng = random.Random(0)
    names = [f"v{rng.randrange(60)}.mp4" for _ in range(100)]
    made = [SourceVideo(name, f"caption {n}", {"licence": str(n)}, "odd" * (n == 5)) for n, name in enumerate(names)]
    first: dict[str, SourceVideo] = {}
    repeated = [(video, first[video.source]) for video in made if first.setdefault(video.source, video) is not video]
    with VideoList(iter(made), tmp_path / "folder" / "list.arrow") as videos:
        assert list(videos) == list(videos) == list(first.values()) and len(videos) == len(first)
        assert list(videos.repeats()) == repeated and videos.repeated == len(repeated)
        known = Sources([f"v{n}.mp4" for n in range(0, 60, 2)] + ["other"])
        kept = ~known.hold(videos.pairs)
        wanted = [video for video in first.values() if int(video.source[1:-4]) % 2]
        assert [video for video, _ in videos.hashed(kept)] == wanted and videos.count(kept) == len(wanted)
    assert not (tmp_path / "folder" / "list.arrow").exists(), "the file is gone when the list is"


def test_names_are_told_apart_by_all_of_their_hash() -> None:
    names = Sources()
    assert not names.hold(hashes(["a"])).any()
    names.pairs = np.array([[1, 2], [1, 5], [1, 9], [7, 0]], np.uint64)
    asked = np.array([[1, 9], [1, 3], [7, 0], [7, 1], [0, 2], [9, 9], [1, 2]], np.uint64)
    assert names.hold(asked).tolist() == [True, False, True, False, False, False, True]
