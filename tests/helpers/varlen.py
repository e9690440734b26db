"""The fused kernels written out on the CPU: what FlashAttention, cuDNN and the own-scale kernels compute, sequence by sequence."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pretrain.attention import attention, flash_attention
from pretrain.attention.varlen_plan import TILE, Segments


def _sequences(q_segments: Segments, k_segments: Segments) -> list[tuple[slice, slice]]:
    q, k = q_segments.begins.tolist(), k_segments.begins.tolist()
    assert len(q) == len(k)
    assert q_segments.longest == max(b - a for a, b in itertools.pairwise(q))
    assert k_segments.longest == max(b - a for a, b in itertools.pairwise(k))
    return [(slice(a, b), slice(c, d)) for a, b, c, d in zip(q, q[1:], k, k[1:])]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Causal scores (H, Q, K); queries stand at the end of the keys."""
    scores = torch.einsum("qhd,khd->hqk", q, k)
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1 + len(k) - len(q)), -torch.inf)


def _gradients(
    scores: Tensor, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse_HQ: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernels do it: weights from the given logarithm, the row's sum from the given output."""
    weights = (scores - lse_HQ.unsqueeze(2)).exp()
    delta = (grad * out).sum(2).t().unsqueeze(2)
    d_scores = weights * (torch.einsum("qhd,khd->hqk", grad, v) - delta)
    dq, dk = torch.einsum("hqk,khd->qhd", d_scores, k), torch.einsum("hqk,qhd->khd", d_scores, q)
    return dq, dk, torch.einsum("hqk,qhd->khd", weights, grad)


def forward(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments) -> tuple[Tensor, Tensor]:
    out, lse = torch.full_like(q, torch.nan), torch.full((q.shape[1], q.shape[0]), torch.nan, dtype=q.dtype)
    for rows, keys in _sequences(q_segments, k_segments):
        scores = _scores(q[rows], k[keys])
        lse[:, rows] = scores.logsumexp(2)
        out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(2), v[keys])
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, segments: tuple[Segments, Segments]
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.full_like(x, torch.nan) for x in (q, k, v))
    for rows, keys in _sequences(*segments):
        given = grad[rows], q[rows], k[keys], v[keys], out[rows], lse[:, rows]
        dq[rows], dk[keys], dv[keys] = _gradients(_scores(q[rows], k[keys]), *given)
    return dq, dk, dv


def _one(length: int) -> Segments:
    return Segments(torch.tensor([0, length]), length)


def dense_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return forward(q, k, v, _one(len(q)), _one(len(k)))


def dense_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return backward(grad, q, k, v, out, lse, (_one(len(q)), _one(len(k))))


def _tiles(tiles: Tensor) -> list[tuple[slice, slice]]:
    """The queries of each tile, and the keys of its scale."""
    return [(slice(first, min(first + TILE, end)), slice(begin, end)) for first, begin, end in tiles.tolist()]


def _later(q: Tensor, k: Tensor, rows: slice, keys: slice) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", q[rows], k[keys])
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).tril(rows.start - keys.start), -torch.inf)


def own_scale_forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tiles: Tensor) -> None:
    for rows, keys in _tiles(tiles):
        scores = _later(q, k, rows, keys)
        whole = torch.logaddexp(lse[:, rows], scores.logsumexp(2))
        out[rows] *= (lse[:, rows] - whole).exp().t().unsqueeze(2)
        out[rows] += torch.einsum("hqk,khd->qhd", (scores - whole.unsqueeze(2)).exp(), v[keys])
        lse[:, rows] = whole


def own_scale_backward(saved: flash_attention.Saved, total: flash_attention.Three, tiles: Tensor) -> None:
    grad, q, k, v, out, lse = saved
    for rows, keys in _tiles(tiles):
        given = grad[rows], q[rows], k[keys], v[keys], out[rows], lse[:, rows]
        more = _gradients(_later(q, k, rows, keys), *given)
        for whole, part, where in zip(total, more, (rows, keys, keys), strict=True):
            whole[where] += part


@pytest.fixture
def varlen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attention backends `flash` and `cudnn` run on a CPU; a run is long from 20 tokens on."""
    monkeypatch.setattr(flash_attention, "varlen_forward", forward)
    monkeypatch.setattr(flash_attention, "varlen_backward", backward)
    for function in (dense_forward, dense_backward, own_scale_forward, own_scale_backward):
        monkeypatch.setattr(flash_attention, function.__name__, function)
    monkeypatch.setattr(attention, "LONG", 20)
