"""Block-structured attention for CPU: few large matrix products over the allowed blocks, nothing for the forbidden ones.

In:  the documents of a row, real text lengths, window, hidden frames.
Out: a `BlockPlan` whose `attend` is differentiable.
Called by: pretrain.attention, for the backend `blocks`.

Legend: B samples, H heads, L tokens, D head dimension, Q queries of one group, S keys of one group.

All keys of a (frame, scale) are a causal prefix of the document, less what the window and hidden frames take away. So
the queries are cut into groups of one or more whole scales of one frame; a group's keys are one to three contiguous
ranges; small scales share a group and take a small triangle mask. Scores never exist for more than one group (cut
further at `SCORES` elements); short sequences keep the weights for the backward pass, long ones make them again.

Why not PyTorch's fused CPU attention: in bfloat16 it reached 62 to 122 GFLOP/s forward and 50 to 100 backward where
these products reach 270 and 330 (docs/numerics.md, Transformer).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.model.token_layout import Layout

ROWS = 64
"""Scales are joined until a group has this many queries."""
ROW_STEP = 256
"""Most queries of one product."""
SCORES = 1024 * 1024
"""About the most scores of one product, samples and heads together: they stay in a core's cache."""
KEPT = 16 * 1024 * 1024
"""A block's weights are kept for the backward pass up to this many, all groups together; beyond, they are made again."""


@dataclass(frozen=True)
class Group:
    """Consecutive queries and the ranges of keys they see."""

    begin: int
    end: int
    keys: tuple[tuple[int, int], ...]
    """Ranges (begin, end) of the row, in order."""
    triangle: Tensor | None
    """bool (Q, tail): forbidden pairs among the last `tail` keys; None when all are allowed."""
    forbidden: Tensor | None
    """bool (B, 1, 1, S): keys that a sample may not see at all; None when all may."""


@dataclass(frozen=True)
class BlockPlan:
    """The groups of a row. Made once a step; holds no reference to activations."""

    groups: tuple[Group, ...]
    tail: tuple[int, int]
    """Padding tokens of the row, which see only themselves."""

    @property
    def pairs(self) -> int:
        """Scores computed for one sample and head."""
        return sum((group.end - group.begin) * sum(end - begin for begin, end in group.keys) for group in self.groups)

    @classmethod
    def make(
        cls, documents: tuple[Layout, ...], text_length_BG: Tensor, window: int, hidden_BGT: Tensor | None, padding: int
    ) -> BlockPlan:
        """Plan a row of documents. Reads the lengths and masks, so it is meant for the CPU."""
        groups: list[Group] = []
        at = 0
        for number, layout in enumerate(documents):
            hidden_BT = None if hidden_BGT is None else hidden_BGT[:, number]
            groups += _document(layout, at, text_length_BG[:, number], window, hidden_BT)
            at += layout.length
        return cls(groups=tuple(groups), tail=(at, at + padding))

    def attend(self, q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor) -> Tensor:
        """Return (B, H, L, D)."""
        out: Tensor = _Blocks.apply(q_BHLD, k_BHLD, v_BHLD, self)  # type: ignore[no-untyped-call]
        return out


def _document(layout: Layout, at: int, text_length_B: Tensor, window: int, hidden_BT: Tensor | None) -> list[Group]:
    groups: list[Group] = []
    # Keys behind the longest text are padding for every sample: left out rather than masked.
    longest = int(text_length_B.max()) if layout.text else 0
    padded_BS = torch.arange(longest, device=text_length_B.device) >= text_length_B.unsqueeze(1)
    if not bool(padded_BS.any()):
        padded_BS = padded_BS[:0]
    for begin in range(0, layout.text, ROWS):
        end = min(begin + ROWS, layout.text)
        groups.append(Group(at + begin, at + end, ((at, at + end),), _after(end - begin, text_length_B.device), None))
    for frame in range(layout.frames):
        first = max(0, frame - window) if window else 0
        shown = [f for f in range(first, frame) if hidden_BT is None or not bool(hidden_BT[:, f].all())]
        ranges = [(at, at + longest)] if longest else []
        ranges += [(at + layout.span(f, 0)[0], at + layout.span(f, 0)[0] + layout.frame) for f in shown]
        masked_BS = _forbidden(padded_BS, longest, shown, hidden_BT, layout.frame)
        base = at + layout.span(frame, 0)[0]
        for begin_scale, end_scale in _joined(layout, layout.scales_of(frame)):
            begin, end = base + layout.offsets[begin_scale], base + layout.offsets[end_scale]
            triangle = _steps(
                [layout.offsets[s + 1] - layout.offsets[s] for s in range(begin_scale, end_scale)], text_length_B.device
            )
            keys = _merge([*ranges, (base, end)])
            forbidden = None
            if masked_BS is not None:
                own = torch.zeros(masked_BS.shape[0], end - base, dtype=torch.bool, device=masked_BS.device)
                forbidden = torch.cat((masked_BS, own), dim=1)[:, None, None]
            groups.append(Group(begin, end, keys, triangle, forbidden))
    return groups


def _joined(layout: Layout, count: int) -> list[tuple[int, int]]:
    """Cut the first `count` scales of a frame into groups (begin, end) of at least ROWS queries, the last scales alone."""
    groups: list[tuple[int, int]] = []
    begin = 0
    for scale in range(count):
        rows = layout.offsets[scale + 1] - layout.offsets[begin]
        if rows >= ROWS or scale + 1 == count:
            groups.append((begin, scale + 1))
            begin = scale + 1
    return groups


def _merge(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for begin, end in ranges:
        if merged and merged[-1][1] == begin:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    return tuple(merged)


def _steps(sizes: list[int], device: torch.device) -> Tensor | None:
    """Forbidden pairs of scales of these sizes among themselves."""
    if len(sizes) == 1:
        return None
    scale = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
    return scale.unsqueeze(0) > scale.unsqueeze(1)


def _after(rows: int, device: torch.device) -> Tensor | None:
    """Forbidden pairs of `rows` text tokens among themselves."""
    return torch.ones(rows, rows, dtype=torch.bool, device=device).triu(1) if rows > 1 else None


def _forbidden(padded_BS: Tensor, longest: int, shown: list[int], hidden_BT: Tensor | None, frame: int) -> Tensor | None:
    """Per-sample mask over text and history keys (B, longest + shown * frame), or None when no sample needs one."""
    some_hidden = hidden_BT is not None and bool(hidden_BT[:, shown].any())
    if not some_hidden and not padded_BS.shape[0]:
        return None
    batch = padded_BS.shape[0] or (hidden_BT.shape[0] if hidden_BT is not None else 0)
    device = padded_BS.device
    text = padded_BS if padded_BS.shape[0] else torch.zeros(batch, longest, dtype=torch.bool, device=device)
    if hidden_BT is None:
        return torch.cat((text, torch.zeros(batch, len(shown) * frame, dtype=torch.bool, device=device)), dim=1)
    return torch.cat((text, hidden_BT[:, shown].repeat_interleave(frame, dim=1)), dim=1)


def _gather(x: Tensor, keys: tuple[tuple[int, int], ...]) -> Tensor:
    """Return a group's rows of `x`, contiguous: a product with a transposed slice of a longer row takes half as long again."""
    if len(keys) == 1:
        return x[:, keys[0][0] : keys[0][1]].contiguous()
    return torch.cat([x[:, begin:end] for begin, end in keys], dim=1)


def _scatter(total: Tensor, part: Tensor, keys: tuple[tuple[int, int], ...], is_first: bool) -> None:
    """Add `part` to the rows `keys` of `total`. is_first: it covers all rows, and they hold nothing yet."""
    if is_first:
        total.copy_(part)
        return
    at = 0
    for begin, end in keys:
        total[:, begin:end] += part[:, at : at + end - begin]
        at += end - begin


def _weights(q: Tensor, k: Tensor, triangle: Tensor | None, forbidden: Tensor | None) -> Tensor:
    """Attention weights of some rows (Z, rows, S); q is scaled. triangle (rows, tail), forbidden (Z, 1, S): True = not seen."""
    scores = torch.bmm(q, k.transpose(1, 2))
    if triangle is not None:
        scores[:, :, scores.shape[2] - triangle.shape[1] :].masked_fill_(triangle, -math.inf)
    if forbidden is not None:
        scores.masked_fill_(forbidden, -math.inf)
    return torch.softmax(scores, dim=-1)


def _together(group: Group, products: int) -> list[slice]:
    """Cut the products (samples x heads) so that the scores of one piece come to about SCORES."""
    step = max(2, min(products, SCORES // (_keys(group) * min(ROW_STEP, group.end - group.begin))))
    # Even shares: a last piece of other shape would leave cores idle.
    step = next((size for size in range(step, 1, -1) if products % size == 0), step)
    return [slice(first, min(first + step, products)) for first in range(0, products, step)]


def _keys(group: Group) -> int:
    return sum(end - begin for begin, end in group.keys)


def _pieces(group: Group, chosen: slice, heads: int) -> Iterator[tuple[slice, Tensor | None, Tensor | None]]:
    """Cut a group's rows: (rows, triangle of the rows, forbidden keys of the chosen products)."""
    hidden = None
    if group.forbidden is not None:
        hidden = group.forbidden.expand(-1, heads, 1, _keys(group)).flatten(0, 1)[chosen]
    for begin in range(group.begin, group.end, ROW_STEP):
        rows = slice(begin, min(begin + ROW_STEP, group.end))
        triangle = None if group.triangle is None else group.triangle[begin - group.begin : rows.stop - group.begin]
        yield rows, triangle, hidden


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, plan: BlockPlan) -> Tensor:
        heads = q_BHLD.shape[1]
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q_BHLD, k_BHLD, v_BHLD))
        out = torch.empty_like(q)
        keeps = plan.pairs * q.shape[0] <= KEPT and any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        for group in reversed(plan.groups):
            for chosen in _together(group, q.shape[0]):
                k_group, v_group = _gather(k[chosen], group.keys), _gather(v[chosen], group.keys)
                for rows, triangle, hidden in _pieces(group, chosen, heads):
                    weights = _weights(q[chosen, rows], k_group, triangle, hidden)
                    out[chosen, rows] = torch.bmm(weights, v_group)
                    if keeps:
                        kept.append(weights)
        begin, end = plan.tail
        out[:, begin:end] = v[:, begin:end]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.plan, ctx.heads = plan, heads
        return out.view(q_BHLD.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_BHLD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        plan, heads = ctx.plan, ctx.heads
        made = iter(kept)
        grad = grad_BHLD.reshape(q.shape)
        dq = torch.empty_like(q)
        # Many groups add to one key: their sum is kept in float32. The last group, which comes first here, mostly sees all keys.
        dk, dv = torch.empty_like(k, dtype=torch.float32), torch.empty_like(v, dtype=torch.float32)
        last = plan.groups[-1]
        begins_whole = last.keys == ((0, q.shape[1]),)
        if not begins_whole:
            dk.zero_()
            dv.zero_()
        for group in reversed(plan.groups):
            for chosen in _together(group, q.shape[0]):
                k_group, v_group = _gather(k[chosen], group.keys), _gather(v[chosen], group.keys)
                for rows, triangle, hidden in _pieces(group, chosen, heads):
                    q_rows, grad_rows = q[chosen, rows], grad[chosen, rows]
                    weights = next(made) if kept else _weights(q_rows, k_group, triangle, hidden)
                    is_first = begins_whole and group is last and rows.start == group.begin
                    # The weights come from far memory: the row-wise pass over them goes before the one that turns them.
                    d_weights = torch.bmm(grad_rows, v_group.transpose(1, 2))
                    d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                    _scatter(dv[chosen], torch.bmm(weights.transpose(1, 2), grad_rows), group.keys, is_first)
                    dq[chosen, rows] = torch.bmm(d_scores, k_group)
                    _scatter(dk[chosen], torch.bmm(d_scores.transpose(1, 2), q_rows), group.keys, is_first)
                    del weights, d_weights, d_scores  # not beside the next piece's
        begin, end = plan.tail
        dq[:, begin:end] = 0
        dv[:, begin:end] += grad[:, begin:end]
        shape = grad_BHLD.shape
        return dq.view(shape), dk.to(k.dtype).view(shape), dv.to(v.dtype).view(shape), None
