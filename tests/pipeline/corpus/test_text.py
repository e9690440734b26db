from __future__ import annotations

import datetime

import pytest

from pipeline.corpus.text import TextError, carried, cell, decoded, mended, readable, storable


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_as_its_mark_says(encoding: str) -> None:
    assert decoded("één\n二".encode(encoding)) == "één\n二"


def test_another_encoding_is_refused_with_its_line() -> None:
    with pytest.raises(TextError, match="not UTF-8: byte 0xe9 in line 2; save it as UTF-8"):
        decoded("one\ncafé\n".encode("latin-1"))
    with pytest.raises(TextError, match="not UTF-16: byte 0x61 in line 1"):
        decoded("a".encode("utf-16")[:-1])


def test_half_characters_are_replaced_and_the_rest_is_kept() -> None:
    assert mended("a \ud83d b \udc00\0😀") == "a \ufffd b \ufffd\ufffd😀"
    assert mended("fine") == "fine"


def test_names_of_another_encoding_are_made_readable() -> None:
    name = b"caf\xe9 \xc3\xa9.mp4".decode("utf-8", "surrogateescape")
    assert not storable(name) and readable(name) == r"caf\xe9 é.mp4" and storable(readable(name))
    assert storable("名 é.mp4") and readable("a\ud83d\0") == "a\\ud83d\\x00"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (float("nan"), ""), (3, "3"), (2.5, "2.5"), ("x\ud800", "x\ufffd"), (b"\xc3\xa9", "é"), (True, "True")],
)
def test_cells_of_any_type(value: object, text: str) -> None:
    assert cell(value) == text and carried(value) == text


def test_lists_and_objects_are_no_captions_but_may_be_carried() -> None:
    for value, word in (["a", "b"], "a list"), ({"a": 1}, "an object"), ((), "a list"):
        with pytest.raises(TextError, match=f"holds {word}"):
            cell(value)
    assert carried(["é", 1]) == '["é", 1]' and carried({"a": 1}) == '{"a": 1}'
    assert cell(datetime.date(2020, 1, 2)) == "2020-01-02"
    with pytest.raises(TextError, match="not UTF-8"):
        cell(b"\xff")
