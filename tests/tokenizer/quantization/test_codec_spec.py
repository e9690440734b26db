"""The contract's arithmetic, its JSON form, and shapes that do not fit."""

from __future__ import annotations

import json

import pytest

from tokenizer.quantization.codec_spec import CodecSpec, SpecError

SPEC = CodecSpec(16, 8, 4, "abc", {"2x2": ((1, 1), (2, 2))})


def test_shapes_of_a_clip() -> None:
    assert SPEC.grid(1, 64, 64) == (1, 8, 8)
    assert SPEC.grid(17, 64, 96) == (5, 8, 12)
    assert SPEC.scales(2, 2) == ((1, 1), (2, 2)), "a list of its own"
    assert SPEC.scales(4, 4) == ((1, 1), (2, 2), (3, 3), (4, 4)), "the schedule's"
    assert (SPEC.positions(2, 2), SPEC.frame_bytes(2, 2)) == (5, 10)


def test_plain_values_are_read_back() -> None:
    assert CodecSpec.parse(json.loads(json.dumps(SPEC.plain()))) == SPEC


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(SpecError, match=r"4 frames: a clip must have 1 \+ 4n frames"):
        SPEC.grid(4, 64, 64)
    with pytest.raises(SpecError, match="60x64 pixels: height and width must be multiples of 8"):
        SPEC.grid(5, 60, 64)
    with pytest.raises(SpecError, match="scale list `wide`: the key must be a latent grid"):
        CodecSpec.parse({**SPEC.plain(), "scale_lists": {"wide": [[1, 1]]}})
    with pytest.raises(KeyError):
        CodecSpec.parse({"bits": 8})
