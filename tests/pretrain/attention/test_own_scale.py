"""On a card: the own-scale kernels against the same sums in float64. (What they add up to: test_flash_attention.py.)"""

from __future__ import annotations

import pytest
import torch

from pretrain.attention.planner import make_plan
from pretrain.attention.token_layout import Layout
from tests.helpers import varlen
from tokenizer.quantization.scale_schedule import scales

LAYOUT = Layout(5, 2, scales(12, 16))
"""Scales of one token to 192: one tile and several."""


@pytest.mark.gpu
@pytest.mark.parametrize("size", [64, 80, 128])
def test_the_kernels_add_what_the_sums_say(size: int) -> None:
    from pretrain.attention import own_scale

    generator = torch.Generator().manual_seed(size)
    tokens, heads = LAYOUT.length, 3
    # Queries, keys and values as the blocks hand them over: views with strides.
    qkv = torch.randn(tokens, 3, heads, size, generator=generator).bfloat16()
    q, k, v = qkv.unbind(1)
    q = q * size**-0.5
    grad, *totals = torch.randn(4, tokens, heads, size, generator=generator).bfloat16()
    tiles = make_plan((LAYOUT,), [[5]], 0, None, 0, torch.device("cpu")).tiles
    wide = [x.double() for x in (grad, q, k, v)]
    out, lse = varlen.dense_forward(*wide[1:])
    there = [x.cuda() for x in (grad, q, k, v)]
    own_out, own_lse = out.bfloat16().cuda(), lse.float().cuda()
    again = own_out.clone(), own_lse.clone()
    varlen.own_scale_forward(*wide[1:], out, lse, tiles)
    for target in ((own_out, own_lse), again):
        own_scale.forward(*there[1:], *target, tiles.cuda())
    assert (own_out.cpu().double() - out).norm() < 6e-3 * out.norm()
    assert torch.allclose(own_lse.cpu().double(), lse, atol=1e-3)
    wanted = [x.double() for x in totals]
    varlen.own_scale_backward((*wide, out, lse), (wanted[0], wanted[1], wanted[2]), tiles)  # type: ignore[arg-type]
    sums = [[x.cuda() for x in totals] for _ in range(2)]
    for total in sums:
        own_scale.backward((*there, own_out, own_lse), (total[0], total[1], total[2]), tiles.cuda())  # type: ignore[arg-type]
    for reference, found, same in zip(wanted, *sums, strict=True):
        assert (found.cpu().double() - reference).norm() < 8e-3 * reference.norm()
        assert torch.equal(found, same)
    assert torch.equal(own_out, again[0]) and torch.equal(own_lse, again[1])
