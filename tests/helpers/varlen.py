"""Variable-length attention written out on the CPU: what FlashAttention's kernels compute, sequence by sequence."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pretrain.model import flash_attention
from pretrain.model.varlen_plan import Segments


def _sequences(q_segments: Segments, k_segments: Segments) -> list[tuple[slice, slice]]:
    q, k = q_segments.begins.tolist(), k_segments.begins.tolist()
    assert len(q) == len(k)
    assert q_segments.longest == max(b - a for a, b in itertools.pairwise(q))
    assert k_segments.longest == max(b - a for a, b in itertools.pairwise(k))
    return [(slice(a, b), slice(c, d)) for a, b, c, d in zip(q, q[1:], k, k[1:])]


def _scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", q, k)
    if not causal:
        return scores
    assert scores.shape[1] == scores.shape[2]
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)


def forward(
    q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, *, causal: bool
) -> tuple[Tensor, Tensor]:
    out, lse = torch.full_like(q, torch.nan), torch.full((q.shape[1], q.shape[0]), torch.nan, dtype=q.dtype)
    for rows, keys in _sequences(q_segments, k_segments):
        scores = _scores(q[rows], k[keys], causal)
        lse[:, rows] = scores.logsumexp(2)
        out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(2), v[keys])
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: tuple[Segments, Segments],
    *,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernels do it: weights from the given logarithm, the row's sum from the given output."""
    dq, dk, dv = (torch.full_like(x, torch.nan) for x in (q, k, v))
    for rows, keys in _sequences(*segments):
        weights = (_scores(q[rows], k[keys], causal) - lse[:, rows].unsqueeze(2)).exp()
        delta = (grad[rows] * out[rows]).sum(2).t().unsqueeze(2)
        d_scores = weights * (torch.einsum("qhd,khd->hqk", grad[rows], v[keys]) - delta)
        dq[rows] = torch.einsum("hqk,khd->qhd", d_scores, k[keys])
        dk[keys] = torch.einsum("hqk,qhd->khd", d_scores, q[rows])
        dv[keys] = torch.einsum("hqk,qhd->khd", weights, grad[rows])
    return dq, dk, dv


@pytest.fixture
def varlen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attention backend `flash` run on a CPU."""
    monkeypatch.setattr(flash_attention, "varlen_forward", forward)
    monkeypatch.setattr(flash_attention, "varlen_backward", backward)
