"""Offsets and descriptors of the token sequence."""

from __future__ import annotations

import torch

from pretrain.attention.token_layout import Layout
from tokenizer.quantization.scale_schedule import scales


def test_offsets_cover_the_sequence_without_gaps() -> None:
    layout = Layout(text=5, frames=3, scales=scales(8, 8))
    assert layout.frame == 130 and layout.video == 390 and layout.length == 395
    at = layout.text
    for frame in range(3):
        for scale, (rows, columns) in enumerate(layout.scales):
            assert layout.span(frame, scale) == (at, at + rows * columns)
            at += rows * columns
    assert at == layout.length


def test_known_token_counts() -> None:
    assert Layout(0, 9, scales(24, 42)).video == 23_652
    assert Layout(0, 9, scales(12, 21)).video == 4_248
    assert Layout(0, 17, scales(24, 42)).video == 44_676


def test_descriptors_against_a_slow_loop() -> None:
    layout = Layout(text=2, frames=2, scales=((1, 1), (2, 3)))
    rows = [(-1, -1, i, i) for i in range(2)]
    for frame in range(2):
        for scale, (height, width) in enumerate(layout.scales):
            rows += [(frame, scale, h, w) for h in range(height) for w in range(width)]
    tokens = layout.tokens()
    found = torch.stack((tokens.frame, tokens.scale, tokens.row, tokens.column), dim=1)
    assert found.tolist() == [list(row) for row in rows]


def test_a_cut_layout_is_a_prefix() -> None:
    layout = Layout(text=2, frames=3, scales=((1, 1), (2, 2), (4, 4)))
    cut = layout.cut(2, last=1)
    assert cut.length == layout.span(1, 0)[1]
    assert cut.scales_of(0) == 3 and cut.scales_of(1) == 1
    for part, whole in zip(vars(cut.tokens()).values(), vars(layout.tokens()).values(), strict=True):
        assert torch.equal(part, whole[: cut.length])
