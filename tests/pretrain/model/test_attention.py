"""The mask says what the paper says, and the backends agree."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from pretrain.model.attention import bind_mask
from tests.helpers.masks import MASKS, qkv


@pytest.mark.parametrize("name", MASKS)
def test_the_dense_mask_against_a_slow_loop(name: str) -> None:
    mask = MASKS[name]
    tokens: list[tuple[int, int, int, int]] = []  # document, frame, scale, text index
    for number, layout in enumerate(mask.documents):
        tokens += [(number, -1, -1, i) for i in range(layout.text)]
        for frame in range(layout.frames):
            for scale in range(layout.scales_of(frame)):
                tokens += [(number, frame, scale, -1)] * (layout.scales[scale][0] * layout.scales[scale][1])
    tokens += [(-1, -1, -1, i) for i in range(mask.padding)]
    dense = mask.dense()
    for b, q, k in itertools.product(range(2), range(len(tokens)), range(len(tokens))):
        (dq, fq, sq, iq), (dk, fk, sk, ik) = tokens[q], tokens[k]
        if dq != dk or dq < 0:
            expected = q == k
        elif fq < 0:
            expected = fk < 0 and ik <= iq
        elif fk < 0:
            expected = ik < int(mask.text_length[b, dk])
        elif fk == fq:
            expected = sk <= sq
        else:
            shown = mask.hidden is None or not bool(mask.hidden[b, dk, fk])
            expected = fk < fq and (not mask.window or fq - fk <= mask.window) and shown
        assert bool(dense[b, 0, q, k]) == expected, (b, tokens[q], tokens[k])


@pytest.mark.parametrize("name", MASKS)
def test_flex_agrees_with_dense_forward_on_cpu(name: str) -> None:
    """FlexAttention has no backward pass on CPU; its mask function and block mask are the same there."""
    mask = MASKS[name]
    q, k, v = (x.detach() for x in qkv(mask))
    with torch.no_grad():
        reference = bind_mask("dense", mask)(0, q, k, v)
        ours = bind_mask("flex", mask)(0, q, k, v)
    assert torch.allclose(reference, ours, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MASKS)
def test_flex_agrees_with_dense_on_gpu(name: str) -> None:
    mask = MASKS[name]
    hidden = None if mask.hidden is None else mask.hidden.cuda()
    mask = replace(mask, text_length=mask.text_length.cuda(), hidden=hidden)
    found = []
    for backend in ("dense", "flex"):
        q, k, v = (torch.randn(2, 3, mask.length, 16, device="cuda", requires_grad=True) for _ in range(3))
        for index, x in enumerate((q, k, v)):
            x.data = torch.randn(x.shape, generator=torch.Generator().manual_seed(index)).cuda()
        out = bind_mask(backend, mask)(0, q, k, v)  # type: ignore[arg-type]
        out.square().sum().backward()
        found.append((out, q.grad, k.grad, v.grad))
    for reference, ours in zip(*found, strict=True):
        assert reference is not None and ours is not None
        assert torch.allclose(reference, ours, atol=2e-3)
