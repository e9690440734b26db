from __future__ import annotations

from pipeline.records import Reject
from pipeline.shards.schemas import clip_rows, clips_of, reject_rows, rejects_of
from tests.helpers.fakes import clip


def test_clips_and_rejects_come_back_from_their_rows() -> None:
    clips = [clip(0, caption="a"), clip(1, source="b.mp4")]
    table = clip_rows(clips, 7)
    assert clips_of(table) == clips and table["group"].to_pylist() == [7, 7]
    rejects = [Reject("a", "probe", "damaged", "x"), Reject("b", "filters", "black", "", 0.5, 1.5, {"luma": 2.0}, "k" * 32)]
    assert rejects_of(reject_rows(rejects)) == rejects
    assert clips_of(clip_rows([], 0)) == [] == rejects_of(reject_rows([]))


def test_a_message_that_quotes_a_name_of_another_encoding_can_be_written() -> None:
    """A surrogate in any text stopped the merge of the whole plan, at each start again."""
    (row,) = rejects_of(reject_rows([Reject("a.mp4", "probe", "unreadable", "caf\udce9.mp4: broken")]))
    assert row.detail == r"caf\udce9.mp4: broken"
    (row,) = rejects_of(reject_rows([Reject("één.mp4", "probe", "unreadable", "één 🎬")]))
    assert (row.source, row.detail) == ("één.mp4", "één 🎬")
