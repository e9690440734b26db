"""Block-structured attention for CPUs: few large matrix products over the blocks that the mask allows, nothing for the others.

In:  the documents of a row, real text lengths, window, hidden frames.
Out: a `BlockAttention` whose `attend` is differentiable.

Legend: B samples, H heads, L tokens, D head dimension, G documents, T latent frames, Z = B x H products, Q queries of a group,
S keys of a group.

The keys of a (frame, scale) are a causal prefix of the document, less what the window and hidden frames take away. So queries are
cut into groups of one or more whole scales of one frame. The keys of a group are one to three contiguous ranges of the row; small
scales share a group, and a small triangular mask keeps them apart. Scores exist for no more than one group at a time (which is
cut further at `MAX_SCORES`). The backward pass uses the attention weights of short sequences and recomputes those of long ones.

Why not PyTorch's fused CPU attention: in bfloat16 it reached 62 to 122 GFLOP/s forward and 50 to 100 backward where these products
reach 270 and 330 (docs/numerics.md, Transformer).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.attention.token_layout import Layout

MIN_QUERIES = 64
"""Scales are joined until a group has this many queries."""
MAX_QUERIES = 256
"""Most queries of one matrix product."""
MAX_SCORES = 1024 * 1024
"""About the most scores of one product, samples and heads together: they stay in a core's cache."""
MAX_KEPT_WEIGHTS = 16 * 1024 * 1024
"""Up to this many attention weights of a block, all groups together, are kept for the backward pass; more are recomputed."""

Range = tuple[int, int]
"""Begin and end of consecutive tokens of a row."""


@dataclass(frozen=True)
class QueryGroup:
    """Consecutive queries and the keys that they see."""

    begin: int
    end: int
    keys: tuple[Range, ...]
    """In order."""
    triangle: Tensor | None
    """bool (Q, tail): forbidden pairs among the last `tail` keys; None if all are allowed."""
    forbidden: Tensor | None
    """bool (B, 1, 1, S): keys that no query of a sample may see; None if all may be seen."""

    @property
    def key_count(self) -> int:
        """S: number of keys."""
        return sum(end - begin for begin, end in self.keys)


@dataclass(frozen=True)
class BlockAttention:
    """Attention over rows of one structure. It is made once per step and holds no reference to activations."""

    groups: tuple[QueryGroup, ...]
    padding: Range
    """Tokens after the last document, which see only themselves."""

    @classmethod
    def make(
        cls, documents: tuple[Layout, ...], text_length_BG: Tensor, window: int, hidden_BGT: Tensor | None, padding: int
    ) -> BlockAttention:
        """Group the queries of a row. Lengths and masks are on the CPU."""
        groups: list[QueryGroup] = []
        at = 0
        for number, layout in enumerate(documents):
            hidden_BT = None if hidden_BGT is None else hidden_BGT[:, number]
            groups += _text_groups(layout, at)
            groups += _video_groups(layout, at, text_length_BG[:, number], window, hidden_BT)
            at += layout.length
        return cls(groups=tuple(groups), padding=(at, at + padding))

    def to(self, device: torch.device) -> BlockAttention:
        """Return the same groups with their masks on `device`."""

        def moved(mask: Tensor | None) -> Tensor | None:
            return None if mask is None else mask.to(device)

        groups = (replace(group, triangle=moved(group.triangle), forbidden=moved(group.forbidden)) for group in self.groups)
        return replace(self, groups=tuple(groups))

    @property
    def pairs(self) -> int:
        """Scores that are computed for one sample and head."""
        return sum((group.end - group.begin) * group.key_count for group in self.groups)

    def attend(self, q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor) -> Tensor:
        """Return the attended values (B, H, L, D); queries are already scaled."""
        out: Tensor = _BlockAttention.apply(q_BHLD, k_BHLD, v_BHLD, self)  # type: ignore[no-untyped-call]
        return out


def _text_groups(layout: Layout, at: int) -> list[QueryGroup]:
    """Return the groups of a document's text, which is causal. at: where the document begins in the row."""
    groups = []
    for begin in range(0, layout.text, MIN_QUERIES):
        end = min(begin + MIN_QUERIES, layout.text)
        count = end - begin
        triangle = torch.ones(count, count, dtype=torch.bool).triu(1) if count > 1 else None
        groups.append(QueryGroup(at + begin, at + end, ((at, at + end),), triangle, None))
    return groups


def _video_groups(layout: Layout, at: int, text_length_B: Tensor, window: int, hidden_BT: Tensor | None) -> list[QueryGroup]:
    """Return the groups of a document's video. at: where the document begins in the row."""
    groups = []
    # Keys after the longest text are padding in every sample: they are left out instead of masked.
    longest = int(text_length_B.max()) if layout.text else 0
    padded_BP = torch.arange(longest) >= text_length_B.unsqueeze(1)
    for frame in range(layout.frames):
        first = max(0, frame - window) if window else 0
        history = [f for f in range(first, frame) if hidden_BT is None or not bool(hidden_BT[:, f].all())]
        earlier = [(at, at + longest)] if longest else []
        earlier += [(at + layout.span(f, 0)[0], at + layout.span(f, 0)[0] + layout.frame) for f in history]
        forbidden_BS = _forbidden(padded_BP, None if hidden_BT is None else hidden_BT[:, history], len(history), layout.frame)
        base = at + layout.span(frame, 0)[0]
        for scales in _joined_scales(layout, layout.scales_of(frame)):
            begin, end = base + layout.offsets[scales.start], base + layout.offsets[scales.stop]
            sizes = [layout.offsets[s + 1] - layout.offsets[s] for s in scales]
            forbidden = None
            if forbidden_BS is not None:
                own_BS = torch.zeros(forbidden_BS.shape[0], end - base, dtype=torch.bool)
                forbidden = torch.cat((forbidden_BS, own_BS), dim=1)[:, None, None]
            groups.append(QueryGroup(begin, end, _merged([*earlier, (base, end)]), _scale_triangle(sizes), forbidden))
    return groups


def _joined_scales(layout: Layout, count: int) -> list[range]:
    """Cut the first `count` scales of a frame into runs of at least MIN_QUERIES tokens; the last run may be shorter."""
    runs: list[range] = []
    begin = 0
    for scale in range(count):
        if layout.offsets[scale + 1] - layout.offsets[begin] >= MIN_QUERIES or scale + 1 == count:
            runs.append(range(begin, scale + 1))
            begin = scale + 1
    return runs


def _merged(ranges: list[Range]) -> tuple[Range, ...]:
    """Join ranges that follow on each other."""
    merged: list[Range] = []
    for begin, end in ranges:
        if merged and merged[-1][1] == begin:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    return tuple(merged)


def _scale_triangle(sizes: list[int]) -> Tensor | None:
    """Return the forbidden pairs among the tokens of consecutive scales: a finer scale is not seen by a coarser one."""
    if len(sizes) == 1:
        return None
    scale = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return scale.unsqueeze(0) > scale.unsqueeze(1)


def _forbidden(padded_BP: Tensor, hidden_BF: Tensor | None, history: int, frame: int) -> Tensor | None:
    """Return which keys of text and history are forbidden, bool (B, P + history * frame); None if no sample forbids any.

    padded_BP: text keys that are padding. hidden_BF: history frames that are hidden. frame: tokens of a frame.
    """
    if not bool(padded_BP.any()) and (hidden_BF is None or not bool(hidden_BF.any())):
        return None
    if hidden_BF is None:
        hidden_BF = torch.zeros(padded_BP.shape[0], history, dtype=torch.bool)
    return torch.cat((padded_BP, hidden_BF.repeat_interleave(frame, dim=1)), dim=1)


def _gather(x: Tensor, keys: Sequence[Range]) -> Tensor:
    """Return the rows `keys` of `x` as a contiguous tensor: a product with a transposed slice of a longer row takes 1.5 times as long."""
    if len(keys) == 1:
        return x[:, keys[0][0] : keys[0][1]].contiguous()
    return torch.cat([x[:, begin:end] for begin, end in keys], dim=1)


def _scatter_add(total: Tensor, part: Tensor, keys: Sequence[Range], is_first: bool) -> None:
    """Add `part` to the rows `keys` of `total`. is_first: it covers all rows, and they hold nothing yet."""
    if is_first:
        total.copy_(part)
        return
    at = 0
    for begin, end in keys:
        total[:, begin:end] += part[:, at : at + end - begin]
        at += end - begin


def _weights(q: Tensor, k: Tensor, triangle: Tensor | None, forbidden: Tensor | None) -> Tensor:
    """Return attention weights (Z, Q, S). triangle: bool (Q, tail), forbidden: bool (Z, 1, S); True = not seen."""
    scores = torch.bmm(q, k.transpose(1, 2))
    if triangle is not None:
        scores[:, :, scores.shape[2] - triangle.shape[1] :].masked_fill_(triangle, -math.inf)
    if forbidden is not None:
        scores.masked_fill_(forbidden, -math.inf)
    return torch.softmax(scores, dim=-1)


def _products(group: QueryGroup, count: int) -> list[slice]:
    """Cut `count` products (samples x heads) so that the scores of one slice come to about MAX_SCORES."""
    step = max(2, min(count, MAX_SCORES // (group.key_count * min(MAX_QUERIES, group.end - group.begin))))
    # Equal slices: a last one of another size would leave cores idle.
    step = next((size for size in range(step, 1, -1) if count % size == 0), step)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def _rows(group: QueryGroup, chosen: slice, heads: int) -> Iterator[tuple[slice, Tensor | None, Tensor | None]]:
    """Cut a group at MAX_QUERIES: yield (rows, their triangle, forbidden keys of the chosen products)."""
    forbidden = None
    if group.forbidden is not None:
        forbidden = group.forbidden.expand(-1, heads, 1, group.key_count).flatten(0, 1)[chosen]
    for begin in range(group.begin, group.end, MAX_QUERIES):
        rows = slice(begin, min(begin + MAX_QUERIES, group.end))
        triangle = None if group.triangle is None else group.triangle[begin - group.begin : rows.stop - group.begin]
        yield rows, triangle, forbidden


class _BlockAttention(torch.autograd.Function):
    """Inside, samples and heads are one axis: (Z, L, D)."""

    @staticmethod
    def forward(ctx: Any, q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, blocks: BlockAttention) -> Tensor:
        heads = q_BHLD.shape[1]
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q_BHLD, k_BHLD, v_BHLD))
        out = torch.empty_like(q)
        keeps_weights = blocks.pairs * q.shape[0] <= MAX_KEPT_WEIGHTS and any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        for group in reversed(blocks.groups):
            for chosen in _products(group, q.shape[0]):
                k_group, v_group = _gather(k[chosen], group.keys), _gather(v[chosen], group.keys)
                for rows, triangle, forbidden in _rows(group, chosen, heads):
                    weights = _weights(q[chosen, rows], k_group, triangle, forbidden)
                    out[chosen, rows] = torch.bmm(weights, v_group)
                    if keeps_weights:
                        kept.append(weights)
        begin, end = blocks.padding
        out[:, begin:end] = v[:, begin:end]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.blocks, ctx.heads = blocks, heads
        return out.view(q_BHLD.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_BHLD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        blocks, heads = ctx.blocks, ctx.heads
        saved_weights = iter(kept)
        grad = grad_BHLD.reshape(q.shape)
        dq = torch.empty_like(q)
        # Many groups add to one key, so the sums are float32. The last group, which comes first here, usually sees all keys.
        dk, dv = torch.empty_like(k, dtype=torch.float32), torch.empty_like(v, dtype=torch.float32)
        last = blocks.groups[-1]
        last_sees_all = last.keys == ((0, q.shape[1]),)
        if not last_sees_all:
            dk.zero_()
            dv.zero_()
        for group in reversed(blocks.groups):
            for chosen in _products(group, q.shape[0]):
                k_group, v_group = _gather(k[chosen], group.keys), _gather(v[chosen], group.keys)
                for rows, triangle, forbidden in _rows(group, chosen, heads):
                    q_rows, grad_rows = q[chosen, rows], grad[chosen, rows]
                    weights = next(saved_weights) if kept else _weights(q_rows, k_group, triangle, forbidden)
                    is_first = last_sees_all and group is last and rows.start == group.begin
                    # The weights come from main memory: the row-wise pass over them comes before the transposed one.
                    d_weights = torch.bmm(grad_rows, v_group.transpose(1, 2))
                    d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                    _scatter_add(dv[chosen], torch.bmm(weights.transpose(1, 2), grad_rows), group.keys, is_first)
                    dq[chosen, rows] = torch.bmm(d_scores, k_group)
                    _scatter_add(dk[chosen], torch.bmm(d_scores.transpose(1, 2), q_rows), group.keys, is_first)
                    del weights, d_weights, d_scores  # free them before the next slice allocates its own
        begin, end = blocks.padding
        dq[:, begin:end] = 0
        dv[:, begin:end] += grad[:, begin:end]
        shape = grad_BHLD.shape
        return dq.view(shape), dk.to(k.dtype).view(shape), dv.to(v.dtype).view(shape), None
