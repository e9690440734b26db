"""The mask says what the paper says, and the backends agree."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pretrain.model import block_attention
from pretrain.model.attention import Mask, allowed_pairs, plan
from pretrain.model.token_layout import Layout

SCALES = ((1, 1), (2, 2), (2, 3))
LAYOUT = Layout(text=3, frames=4, scales=SCALES)


def _masks() -> dict[str, Mask]:
    lengths = torch.tensor([[3], [1]])
    hidden = torch.tensor([[[False, True, False, False]], [[True, False, True, False]]])
    second = Layout(text=2, frames=2, scales=((1, 1), (3, 2)))
    return {
        "plain": Mask((LAYOUT,), torch.tensor([[3], [3]])),
        "padded text": Mask((LAYOUT,), lengths),
        "window": Mask((LAYOUT,), lengths, window=2),
        "hidden frames": Mask((LAYOUT,), lengths, hidden=hidden),
        "all": Mask((LAYOUT,), lengths, window=1, hidden=hidden),
        "hidden for all": Mask((LAYOUT,), lengths, hidden=torch.ones_like(hidden)),
        "no text": Mask((Layout(0, 3, SCALES),), torch.zeros(2, 1, dtype=torch.int64)),
        "cut": Mask((LAYOUT.cut(3, last=1),), lengths, window=1),
        "packed": Mask((LAYOUT, second), torch.tensor([[3, 1], [2, 2]]), window=2, hidden=hidden.repeat(1, 2, 1), padding=5),
    }


MASKS = _masks()


def _qkv(mask: Mask, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, mask.length, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    return q, k, v


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


@pytest.mark.parametrize("rows", [4, 128])
@pytest.mark.parametrize("scores", [64, 1 << 23])
@pytest.mark.parametrize("kept", [0, 1 << 23])
@pytest.mark.parametrize("name", MASKS)
def test_blocks_agree_with_dense(name: str, rows: int, scores: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_attention, "ROWS", rows)
    monkeypatch.setattr(block_attention, "SCORES", scores)
    monkeypatch.setattr(block_attention, "KEPT", kept)
    monkeypatch.setattr(block_attention, "ROW_STEP", 5 if scores == 64 else 256)
    mask = MASKS[name]
    found = []
    for backend in ("dense", "blocks"):
        q, k, v = _qkv(mask)
        out = plan(backend, mask)(0, q, k, v)  # type: ignore[arg-type]
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out * weight).sum().backward()
        found.append((out, q.grad, k.grad, v.grad))
    for reference, ours in zip(*found, strict=True):
        assert reference is not None and ours is not None
        assert torch.allclose(reference, ours, atol=1e-5, rtol=1e-5)


def test_blocks_agree_with_dense_in_bfloat16_to_its_rounding() -> None:
    mask = MASKS["all"]
    q, k, v = _qkv(mask, torch.bfloat16)
    reference = plan("dense", mask)(0, q.float(), k.float(), v.float())
    ours = plan("blocks", mask)(0, q, k, v)
    assert ours.dtype == torch.bfloat16
    assert float((ours.float() - reference).detach().abs().max()) < 0.05


@pytest.mark.parametrize("name", MASKS)
def test_flex_agrees_with_dense_forward_on_cpu(name: str) -> None:
    """FlexAttention has no backward pass on CPU; its mask function and block mask are the same there."""
    mask = MASKS[name]
    q, k, v = (x.detach() for x in _qkv(mask))
    with torch.no_grad():
        reference = plan("dense", mask)(0, q, k, v)
        ours = plan("flex", mask)(0, q, k, v)
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
        out = plan(backend, mask)(0, q, k, v)  # type: ignore[arg-type]
        out.square().sum().backward()
        found.append((out, q.grad, k.grad, v.grad))
    for reference, ours in zip(*found, strict=True):
        assert reference is not None and ours is not None
        assert torch.allclose(reference, ours, atol=2e-3)


@pytest.mark.parametrize("name", MASKS)
def test_no_output_depends_on_a_forbidden_key(name: str) -> None:
    """Gradient of every query's output with respect to every key and value: zero exactly where the mask forbids."""
    mask = MASKS[name]
    dense = mask.dense()
    q, k, v = _qkv(mask)
    out = plan("blocks", mask)(0, q, k, v)
    for query in range(mask.length):
        dk, dv = torch.autograd.grad(out[:, :, query].sum(), (k, v), retain_graph=True)
        touched = (dk.abs().sum((1, 3)) > 0) | (dv.abs().sum((1, 3)) > 0)
        assert torch.equal(touched & dense[:, 0, query], touched), query
        # A value that is allowed always counts: its weight is never exactly 0 here.
        assert torch.equal(dv.abs().sum((1, 3)) > 0, dense[:, 0, query]), query


@pytest.mark.parametrize("window", [0, 1, 2])
def test_allowed_pairs_counts_the_mask(window: int) -> None:
    mask = Mask((LAYOUT,), torch.tensor([[2]]), window=window)
    dense = mask.dense()[0, 0]
    dense[2] = False  # the padding token
    assert allowed_pairs(LAYOUT, 2, window) == int(dense.sum())


def test_blocks_skip_what_is_forbidden() -> None:
    """The scores that are computed stay near the allowed pairs, and below half of L x L."""
    layout = Layout(text=20, frames=5, scales=((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)))
    made = block_attention.BlockPlan.make((layout,), torch.tensor([[20]]), 2, None, 0)
    computed = sum((g.end - g.begin) * sum(e - b for b, e in g.keys) for g in made.groups)
    allowed = allowed_pairs(layout, 20, 2)
    assert computed < 1.2 * allowed
    assert computed < 0.6 * layout.length**2
