"""Attention on a GPU: PyTorch's FlashAttention kernels over the parts of a `VarlenPlan`, merged exactly.

In:  queries (scaled), keys, values of N tokens in bfloat16 or float16, a plan.
Out: the attended values; differentiable.

Legend: B rows, H heads, L tokens of a row, N = B x L tokens, D head dimension.

Each part is softmax attention over some of the keys, with the logarithm of its sum of exponentials. Two parts of one query merge
as in blockwise and ring attention: out = out_1 exp(lse_1 - lse) + out_2 exp(lse_2 - lse), lse = log(exp(lse_1) + exp(lse_2)).
The gradient of the whole is the sum of the parts' gradients, each computed from the merged output and logarithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.model.fused_ops import choose
from pretrain.model.varlen_plan import Part, Segments, VarlenPlan


def attend(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, plan: VarlenPlan) -> Tensor:
    """Return the attended values (B, H, L, D). Free of copies if the memory is in the order (B, L, H, D)."""
    rows, _, length, _ = q_BHLD.shape
    q_NHD, k_NHD, v_NHD = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHLD, k_BHLD, v_BHLD))
    out_NHD: Tensor = _FlashAttention.apply(q_NHD, k_NHD, v_NHD, plan)  # type: ignore[no-untyped-call]
    out_BHLD: Tensor = out_NHD.unflatten(0, (rows, length)).transpose(1, 2)
    return out_BHLD


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: VarlenPlan) -> Tensor:
        out, lse_HN = varlen_forward(q, k, v, plan.causal, plan.causal, causal=True)
        for part in (plan.own_scale, plan.history):
            if part is not None:
                chosen = q.index_select(0, part.q), k.index_select(0, part.k), v.index_select(0, part.k)
                found = varlen_forward(*chosen, part.q_segments, part.k_segments, causal=part.causal)
                out, lse_HN = choose(merge, out.is_cuda)(out, lse_HN, *found, part.q_place)
        ctx.save_for_backward(q, k, v, out, lse_HN)
        ctx.plan = plan
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse_HN = ctx.saved_tensors
        plan: VarlenPlan = ctx.plan
        saved = (grad.contiguous(), q, k, v, out, lse_HN)
        with _deterministic():
            total = varlen_backward(*saved, (plan.causal, plan.causal), causal=True)
            for part in (plan.own_scale, plan.history):
                if part is not None:
                    total = _add_part(part, saved, total)
        return *total, None


def _add_part(
    part: Part, saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], total: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v with those of a part added."""
    grad, q, k, v, out, lse_HN = saved
    grad, q, out = (x.index_select(0, part.q) for x in (grad, q, out))
    k, v = k.index_select(0, part.k), v.index_select(0, part.k)
    segments = part.q_segments, part.k_segments
    more = varlen_backward(grad, q, k, v, out, lse_HN.index_select(1, part.q), segments, causal=part.causal)
    add = choose(add_gathered, grad.is_cuda)
    dq, dk, dv = total
    return add(dq, more[0], part.q_place.unsqueeze(0)), add(dk, more[1], part.k_places), add(dv, more[2], part.k_places)


def merge(out: Tensor, lse_HN: Tensor, part: Tensor, part_lse_HM: Tensor, place_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return output (N, H, D) and logarithm (H, N) with a part's merged in. place_N: each token's place in the part, or M."""
    count = part.shape[0]
    is_there = place_N < count
    at = place_N.clamp(max=count - 1)
    other_HN = torch.where(is_there, part_lse_HM[:, at], -torch.inf)
    # torch.logaddexp, written out: its derivative is not needed, and a compiler fuses these.
    high_HN = torch.maximum(lse_HN, other_HN)
    sum_HN = high_HN + torch.log(torch.exp(lse_HN - high_HN) + torch.exp(other_HN - high_HN))
    own_NH1, part_NH1 = (torch.exp(x - sum_HN).t().unsqueeze(-1) for x in (lse_HN, other_HN))
    return (out.float() * own_NH1 + part[at].float() * part_NH1).to(out.dtype), sum_HN


def add_gathered(total: Tensor, gathered: Tensor, places_MN: Tensor) -> Tensor:
    """Return total (N, H, D) plus, for each token, the rows of `gathered` at its places; a place past the end adds nothing.

    The order of the sum is fixed, so the result is the same in every run.
    """
    count = gathered.shape[0]
    wide = total.float()
    for place_N in places_MN.unbind(0):
        more = gathered[place_N.clamp(max=count - 1)].float()
        wide = wide + torch.where((place_N < count)[:, None, None], more, 0.0)
    return wide.to(total.dtype)


def varlen_forward(
    q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Return output (tokens, H, D) and log-sum-exp float32 (H, tokens) of each sequence of q over its sequence of k and v."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(  # noqa: SLF001
        q, k, v, q_segments.begins, k_segments.begins, q_segments.longest, k_segments.longest, 0.0, causal, False, scale=1.0
    )
    return out, lse


def varlen_backward(
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
    """Return the gradients of q, k and v."""
    state = torch.empty(2, dtype=torch.uint64, device=q.device)  # of the dropout's random numbers: there is none
    q_segments, k_segments = segments
    dq, dk, dv = torch.ops.aten._flash_attention_backward(  # noqa: SLF001
        grad, q, k, v, out, lse, q_segments.begins, k_segments.begins, q_segments.longest, k_segments.longest,
        0.0, causal, state, state, scale=1.0,
    )  # fmt: skip
    return dq, dk, dv


@contextmanager
def _deterministic() -> Iterator[None]:
    """Sum gradients in a fixed order inside the block, so that a resumed run repeats an undisturbed one to the last bit."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        settings.fill_uninitialized_memory = fills
