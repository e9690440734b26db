"""Multi-scale Temporal RoPE against Eq. 7 written out."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.attention.token_layout import Layout
from pretrain.model import rope
from pretrain.model.config import ModelConfig

CONFIG = ModelConfig(layers=1, width=64, heads=2)
LAYOUT = Layout(text=4, frames=2, scales=((1, 1), (2, 2), (3, 4)))


def _slow(x: list[float], position: tuple[float, float, float], base: float, axes: list[int]) -> list[float]:
    """Turn pair j by position[axis of j] * base^(-j / P), in plain Python."""
    pairs = len(x) // 2
    out = list(x)
    for j in range(pairs):
        angle = position[axes[j]] * base ** (-j / pairs)
        out[j] = x[j] * math.cos(angle) - x[j + pairs] * math.sin(angle)
        out[j + pairs] = x[j + pairs] * math.cos(angle) + x[j] * math.sin(angle)
    return out


def test_rotation_equals_the_slow_formula() -> None:
    lengths = torch.tensor([4, 2])
    positions = rope.positions(LAYOUT, lengths)
    cos, sin = rope.tables(positions, CONFIG)
    x = torch.randn(2, 2, LAYOUT.length, 32, generator=torch.Generator().manual_seed(0))
    turned = rope.rotate(x, cos, sin)
    axes = [1, 2, 0, 1, 2, 0, 1, 2] * 2
    assert rope.axes(16, CONFIG.rope_split) == axes
    for b, psi in enumerate(lengths.tolist()):
        at = LAYOUT.text
        for frame in range(LAYOUT.frames):
            for height, width in LAYOUT.scales:
                for h in range(height):
                    for w in range(width):
                        place = (frame + psi, h + psi, w + psi)
                        expected = _slow(x[b, 1, at].tolist(), place, 10_000.0, axes)
                        assert turned[b, 1, at].tolist() == pytest.approx(expected, abs=2e-5)
                        at += 1


def test_text_equals_plain_rope() -> None:
    cos, sin = rope.tables(rope.positions(LAYOUT, torch.tensor([4])), CONFIG)
    index, pairs = torch.arange(4.0), torch.arange(16.0)
    angles = index[:, None] * 10_000.0 ** (-pairs / 16)
    assert torch.allclose(cos[0, 0, :4], angles.cos(), atol=1e-6)
    assert torch.allclose(sin[0, 0, :4], angles.sin(), atol=1e-6)


def test_figure_2_of_the_paper() -> None:
    layout = Layout(text=5, frames=2, scales=((1, 1), (2, 2)))
    positions = rope.positions(layout, torch.tensor([5]))[0].to(torch.int64).tolist()
    assert positions[:5] == [[i, i, i] for i in range(5)]
    assert positions[5:10] == [[5, 5, 5], [5, 5, 5], [5, 5, 6], [5, 6, 5], [5, 6, 6]]
    assert positions[10:] == [[6, 5, 5], [6, 5, 5], [6, 5, 6], [6, 6, 5], [6, 6, 6]]


def test_scores_depend_on_differences_only() -> None:
    """A shift of all positions of a sample changes no product of a query and a key."""
    x = torch.randn(1, 1, LAYOUT.length, 32, dtype=torch.float64)
    products = []
    for shift in (0.0, 11.0):
        cos, sin = (t.double() for t in rope.tables(rope.positions(LAYOUT, torch.tensor([4])) + shift, CONFIG))
        turned = rope.rotate(x, cos, sin)
        products.append(turned @ turned.transpose(2, 3))
    assert torch.allclose(products[0], products[1], atol=1e-4)


def test_options() -> None:
    flat = rope.positions(LAYOUT, torch.tensor([3]), kind="flat")[0]
    assert flat[:, 0].tolist() == [0, 1, 2, 3, *range(3, 3 + LAYOUT.video)]
    assert torch.equal(flat[:, 0], flat[:, 2])
    aligned = rope.positions(LAYOUT, torch.tensor([0]), spatial="aligned")[0]
    at = LAYOUT.span(0, 1)[0]
    # 2x2 on a 3x4 grid: rows step by 1.5, columns by 2.
    assert aligned[at : at + 4, 1:].tolist() == [[0, 0], [0, 2], [1.5, 0], [1.5, 2]]
    assert aligned[LAYOUT.span(1, 2)[1] - 1].tolist() == [1, 2, 3]


def test_every_axis_has_fast_and_slow_pairs() -> None:
    """Neighbouring rows, columns and frames are all told apart: a quarter of a turn is not left to one axis."""
    for pairs in (16, 32, 40, 64):
        dealt = rope.axes(pairs, CONFIG.rope_split)
        assert [dealt.count(a) for a in range(3)] == [pairs // 4, pairs * 3 // 8, pairs * 3 // 8]
        for axis in range(3):
            places = [j for j, a in enumerate(dealt) if a == axis]
            assert places[0] < 4 and places[-1] >= pairs - 4
