"""Block attention agrees with the dense mask, forward and backward, and computes little that the mask forbids."""

from __future__ import annotations

import pytest
import torch

from pretrain.attention import block_attention
from pretrain.attention.attention import bind_mask
from pretrain.attention.token_layout import Layout
from pretrain.estimate.flops import attended_pairs
from tests.helpers.masks import MASKS, qkv


@pytest.mark.parametrize("rows", [4, 128])
@pytest.mark.parametrize("scores", [64, 1 << 23])
@pytest.mark.parametrize("kept", [0, 1 << 23])
@pytest.mark.parametrize("name", MASKS)
def test_blocks_agree_with_dense(name: str, rows: int, scores: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_attention, "MIN_QUERIES", rows)
    monkeypatch.setattr(block_attention, "MAX_SCORES", scores)
    monkeypatch.setattr(block_attention, "MAX_KEPT_WEIGHTS", kept)
    monkeypatch.setattr(block_attention, "MAX_QUERIES", 5 if scores == 64 else 256)
    mask = MASKS[name]
    found = []
    for backend in ("dense", "blocks"):
        q, k, v = qkv(mask)
        out = bind_mask(backend, mask)(0, q, k, v)  # type: ignore[arg-type]
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out * weight).sum().backward()
        found.append((out, q.grad, k.grad, v.grad))
    for reference, ours in zip(*found, strict=True):
        assert reference is not None and ours is not None
        assert torch.allclose(reference, ours, atol=1e-5, rtol=1e-5)


def test_blocks_agree_with_dense_in_bfloat16_to_its_rounding() -> None:
    mask = MASKS["all"]
    q, k, v = qkv(mask, torch.bfloat16)
    reference = bind_mask("dense", mask)(0, q.float(), k.float(), v.float())
    ours = bind_mask("blocks", mask)(0, q, k, v)
    assert ours.dtype == torch.bfloat16
    assert float((ours.float() - reference).detach().abs().max()) < 0.05


@pytest.mark.parametrize("name", MASKS)
def test_no_output_depends_on_a_forbidden_key(name: str) -> None:
    """Gradient of every query's output with respect to every key and value: zero exactly where the mask forbids."""
    mask = MASKS[name]
    dense = mask.dense()
    q, k, v = qkv(mask)
    out = bind_mask("blocks", mask)(0, q, k, v)
    for query in range(mask.length):
        dk, dv = torch.autograd.grad(out[:, :, query].sum(), (k, v), retain_graph=True)
        touched = (dk.abs().sum((1, 3)) > 0) | (dv.abs().sum((1, 3)) > 0)
        assert torch.equal(touched & dense[:, 0, query], touched), query
        # A value that is allowed always counts: its weight is never exactly 0 here.
        assert torch.equal(dv.abs().sum((1, 3)) > 0, dense[:, 0, query]), query


def test_blocks_skip_what_is_forbidden() -> None:
    """The scores that are computed stay near the allowed pairs, and below half of L x L."""
    layout = Layout(text=20, frames=5, scales=((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)))
    made = block_attention.BlockAttention.make((layout,), torch.tensor([[20]]), 2, None, 0)
    allowed = attended_pairs(layout, 2)
    assert made.pairs < 1.2 * allowed
    assert made.pairs < 0.6 * layout.length**2
