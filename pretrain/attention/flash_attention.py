"""Attention on a GPU: the calls of a `VarlenPlan`, by the fused kernels that come with PyTorch, and the last few pairs by ours.

In:  queries (scaled), keys, values of N tokens in bfloat16 or float16, in the plan's order; the plan.
Out: the attended values in the same order; differentiable.

Legend: B rows, H heads, L tokens of a row, N = B x L tokens, D head dimension.

Each token is a query of one call, which returns its attention and the logarithm of its sum of exponentials (lse). The later tokens
of its own scale are then added as in online softmax, and both are updated. The gradient of the whole is the sum of the parts'
gradients, each computed from the final output and logarithm, as in blockwise and ring attention.

Short runs and single frames are FlashAttention's with variable lengths, and sum gradients in a fixed order. A long run, where the
plan has one, is cuDNN's: twice as fast on a Hopper card, but the order in which it sums a query's gradient varies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.attention.varlen_plan import Call, Frames, Segments, VarlenPlan

Three = tuple[Tensor, Tensor, Tensor]


def attend(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, plan: VarlenPlan, *, ordered: bool = False) -> Tensor:
    """Return the attended values (B, H, L, D). Free of copies if the memory is in the order (B, L, H, D).

    ordered: the tokens already stand in the plan's order.
    """
    rows, _, length, _ = q_BHLD.shape
    given = [x.transpose(1, 2).flatten(0, 1) for x in (q_BHLD, k_BHLD, v_BHLD)]
    moves = plan.order is not None and plan.place is not None and not ordered
    if moves:
        given = [x.index_select(0, plan.order) for x in given]  # type: ignore[arg-type]
    out_NHD: Tensor = _FlashAttention.apply(*given, plan)  # type: ignore[no-untyped-call]
    if moves:
        out_NHD = out_NHD.index_select(0, plan.place)  # type: ignore[arg-type]
    out_BHLD: Tensor = out_NHD.unflatten(0, (rows, length)).transpose(1, 2)
    return out_BHLD


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: VarlenPlan) -> Tensor:
        parts = [_call_forward(call, q, k, v) for call in plan.calls]
        if plan.frames is not None:
            parts.append(_frames_forward(plan.frames, q, k, v))
        out, lse_HN = parts[0] if len(parts) == 1 else (torch.cat(x, axis) for x, axis in zip(zip(*parts), (0, 1)))
        if len(plan.tiles):
            own_scale_forward(q, k, v, out, lse_HN, plan.tiles)
        ctx.save_for_backward(q, k, v, out, lse_HN)
        ctx.plan = plan
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse_HN = ctx.saved_tensors
        plan: VarlenPlan = ctx.plan
        saved = (grad.contiguous(), q, k, v, out, lse_HN)
        found = [_call_backward(call, saved) for call in plan.calls]
        if len(found) == 1 and plan.frames is None:
            total = found[0]
        elif plan.frames is None:
            total = tuple(torch.cat(parts) for parts in zip(*found))  # type: ignore[assignment]
        else:
            total = _with_frames(plan.frames, found, saved)
        if len(plan.tiles):
            own_scale_backward(saved, total, plan.tiles)
        return *total, None


Saved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Gradient of the output, queries, keys, values, output, logarithm."""


def _call_forward(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x[call.begin : call.end] for x in (q, k, v))
    if call.segments is None:
        return dense_forward(q, k, v)
    return varlen_forward(q, k, v, call.segments, call.segments)


def _call_backward(call: Call, saved: Saved) -> Three:
    grad, q, k, v, out = (x[call.begin : call.end] for x in saved[:5])
    lse_HN = saved[5][:, call.begin : call.end].contiguous()
    if call.segments is None:
        return dense_backward(grad, q, k, v, out, lse_HN)
    return varlen_backward(grad, q, k, v, out, lse_HN, (call.segments, call.segments))


def _frames_forward(frames: Frames, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    k, v = k.index_select(0, frames.keys), v.index_select(0, frames.keys)
    return varlen_forward(q[frames.begin :], k, v, frames.q_segments, frames.k_segments)


def _with_frames(frames: Frames, found: list[Three], saved: Saved) -> Three:
    """Return the gradients of q, k and v: of the calls, and of the frames, whose keys are shared."""
    grad, q, k, v, out, lse_HN = saved
    grad, q, out = (x[frames.begin :] for x in (grad, q, out))
    k, v = k.index_select(0, frames.keys), v.index_select(0, frames.keys)
    segments = frames.q_segments, frames.k_segments
    more = varlen_backward(grad, q, k, v, out, lse_HN[:, frames.begin :].contiguous(), segments)
    dq = torch.cat([*(part[0] for part in found), more[0]])
    sums = []
    for axis in (1, 2):
        wide = torch.zeros(dq.shape, dtype=torch.promote_types(dq.dtype, torch.float32), device=dq.device)
        torch.cat([part[axis] for part in found] or [wide[:0]], out=wide[: frames.begin])
        for at, tokens in frames.shares:  # no token is twice in one share, so the sum has a fixed order
            wide.index_add_(0, tokens, more[axis].index_select(0, at).to(wide.dtype))
        sums.append(wide.to(dq.dtype))
    return dq, sums[0], sums[1]


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments) -> tuple[Tensor, Tensor]:
    """Return output (tokens, H, D) and log-sum-exp float32 (H, tokens) of each sequence of q over its sequence of k and v.

    Causal; a shorter sequence of q stands at the end of its keys.
    """
    out, lse, *_ = torch.ops.aten._flash_attention_forward(  # noqa: SLF001
        q, k, v, q_segments.begins, k_segments.begins, q_segments.longest, k_segments.longest, 0.0, True, False, scale=1.0
    )
    return out, lse


def varlen_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse_HN: Tensor, segments: tuple[Segments, Segments]
) -> Three:
    """Return the gradients of q, k and v."""
    state = torch.empty(2, dtype=torch.uint64, device=q.device)  # of the dropout's random numbers: there is none
    q_segments, k_segments = segments
    with _deterministic():
        dq, dk, dv = torch.ops.aten._flash_attention_backward(  # noqa: SLF001
            grad, q, k, v, out, lse_HN, q_segments.begins, k_segments.begins, q_segments.longest, k_segments.longest,
            0.0, True, state, state, scale=1.0,
        )  # fmt: skip
    return dq, dk, dv


def dense_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return output (tokens, H, D) and log-sum-exp float32 (H, tokens) of one causal sequence."""
    given = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(  # noqa: SLF001
        *given, None, True, 0.0, True, False, scale=1.0
    )
    return out[0].transpose(0, 1), lse.view(q.shape[1], q.shape[0])


def dense_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse_HN: Tensor) -> Three:
    """Return the gradients of q, k and v of one causal sequence."""
    state = torch.zeros((), dtype=torch.int64, device=q.device)
    given = (x.transpose(0, 1).unsqueeze(0) for x in (grad, q, k, v, out))
    found = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(  # noqa: SLF001
        *given, lse_HN.view(1, *lse_HN.shape, 1), state, state, None, None, None, q.shape[0], k.shape[0], 0.0, True, scale=1.0
    )
    dq, dk, dv = (x[0].transpose(0, 1) for x in found)
    return dq, dk, dv


def own_scale_forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse_HN: Tensor, tiles: Tensor) -> None:
    """Add each token's later tokens of its scale to `out` and `lse_HN`, in place."""
    from pretrain.attention import own_scale

    own_scale.forward(q, k, v, out, lse_HN, tiles)


def own_scale_backward(saved: Saved, total: Three, tiles: Tensor) -> None:
    """Add the gradients of these pairs to those of q, k and v, in place."""
    from pretrain.attention import own_scale

    own_scale.backward(saved, total, tiles)


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
