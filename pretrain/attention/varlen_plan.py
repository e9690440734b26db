"""The attention mask as few calls of causal attention: integers made from the layout, no tensor of L x L.

In:  the documents of a row, real text lengths, window, hidden frames, all on the host.
Out: a `VarlenPlan`: an order of the tokens and index tensors on the device for the calls of flash_attention.py.

Legend: B rows, L tokens of a row, N = B x L tokens, G documents, T latent frames.

    part       queries                          keys                                     mask
    runs       text and its frames in sequence  the same tokens                          lower triangle
    frames     one latent frame each            text, earlier frames, the frame's own    lower triangle, aligned at the end
    own scale  the tokens of a scale            the later tokens of the same scale       strict upper triangle

A frame is in its document's run if it is not hidden and sees all that stands before it there. Frames that later ones do not see,
and those from which the window has begun to move, stand at the end of the plan's order and are computed one by one over gathered
keys. So each token is a query of one call, and the third part, whose keys no other has, is merged into that. Padded text and a
row's padding attend among themselves, or also to what stands before them: nothing reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.attention.index_buffer import IndexBuffer, Rows
from pretrain.attention.token_layout import Layout
from tokenizer.quantization.scale_schedule import Scales

Range = tuple[int, int]
"""Begin and end of consecutive tokens."""
TILE = 64
"""Queries or keys of a tile of the own-scale kernels."""
LONG = 4096
"""Runs of at least this many tokens are calls of their own where the backend has a kernel for one long sequence."""


@dataclass(frozen=True)
class Segments:
    """The sequences of a call, one after the other."""

    begins: Tensor
    """int32 (S + 1): where each of S sequences begins, and the total."""
    longest: int
    """Tokens of the longest sequence."""


@dataclass(frozen=True)
class Call:
    """Causal attention over consecutive tokens of the order."""

    begin: int
    end: int
    segments: Segments | None
    """None: one sequence."""


@dataclass(frozen=True)
class Frames:
    """Frames computed one by one over gathered keys; their queries are the last tokens of the order."""

    begin: int
    q_segments: Segments
    keys: Tensor
    """int32: the token of each gathered key."""
    k_segments: Segments
    shares: tuple[tuple[Tensor, Tensor], ...]
    """int32 pairs (places among the gathered keys, their tokens); no token is twice in one pair, and all pairs hold all keys."""


@dataclass(frozen=True)
class VarlenPlan:
    """Attention of N tokens, which stand in the plan's order."""

    order: Tensor | None
    """int32 (N): which token stands at each place; None if all stand where they were."""
    place: Tensor | None
    """int32 (N): where each token stands."""
    calls: tuple[Call, ...]
    frames: Frames | None
    tiles: Tensor
    """int32 (tiles, 3): first token of a tile of TILE tokens of a scale, begin and end of the scale. Scales of one token have none."""
    nbytes: int
    """Bytes of all index tensors together, which are views of one."""


def make_plan(
    documents: Sequence[Layout],
    text_length: Sequence[Sequence[int]],
    window: int,
    hidden: Sequence[Sequence[Sequence[bool]]] | None,
    padding: int,
    device: torch.device,
    long: int = 0,
) -> VarlenPlan:
    """Return the plan of B rows of equal structure; it is kept while nothing changes.

    text_length: (B, G) real text tokens. window: latent frames of history, 0 = all. hidden: (B, G, T) frames that later frames do
    not see. padding: tokens after a row's last document. long: runs of at least so many tokens become calls of their own; 0: none.
    """
    frozen = None if hidden is None else tuple(tuple(tuple(frames) for frames in row) for row in hidden)
    return _plan(tuple(documents), tuple(tuple(row) for row in text_length), window, frozen, padding, device, long)


@functools.lru_cache(maxsize=16)
def _plan(
    documents: tuple[Layout, ...],
    text_length: tuple[tuple[int, ...], ...],
    window: int,
    hidden: tuple[tuple[tuple[bool, ...], ...], ...] | None,
    padding: int,
    device: torch.device,
    long: int,
) -> VarlenPlan:
    draft = _Draft()
    for row, lengths in enumerate(text_length):
        for number, (layout, text) in enumerate(zip(documents, lengths, strict=True)):
            draft.add(layout, min(text, layout.text), window, hidden[row][number] if hidden else ())
        draft.pad(padding)
    return draft.finish(device, long)


class _Draft:
    """Collects runs and single frames, of tokens in their own order."""

    def __init__(self) -> None:
        self.at = 0
        self.runs: list[list[Range]] = []
        self.frames: list[tuple[Range, list[Range]]] = []
        self.spans: list[tuple[Scales, int, int]] = []

    def add(self, layout: Layout, text: int, window: int, hides: Sequence[bool]) -> None:
        """Take the next document, which has `text` real text tokens."""
        base, video = self.at, self.at + layout.text
        words = [(base, base + text)] if text else []
        run, seen = list(words), list[tuple[int, Range]]()
        for frame in range(layout.frames):
            count = layout.scales_of(frame)
            begin = video + frame * layout.frame
            span = (begin, begin + layout.offsets[count])
            self.spans.append((layout.scales, count, begin))
            is_hidden = bool(hides) and hides[frame]
            if is_hidden or (window and frame > window):
                shown = [item for number, item in seen if not window or frame - number <= window]
                self.frames.append((span, [*words, *shown, span]))
            else:
                run.append(span)
            if not is_hidden:
                seen.append((frame, span))
        self.at = video + sum(layout.offsets[layout.scales_of(frame)] for frame in range(layout.frames))
        if run:
            self.runs.append(run)
        if text < layout.text:
            self.runs.append([(base + text, video)])

    def pad(self, count: int) -> None:
        """Take padding, as the end of the run before it if that is its neighbour."""
        if count and self.runs and self.runs[-1][-1][1] == self.at:
            self.runs[-1].append((self.at, self.at + count))
        elif count:
            self.runs.append([(self.at, self.at + count)])
        self.at += count

    def finish(self, device: torch.device, long: int) -> VarlenPlan:
        """Return the plan."""
        spans = [span for run in self.runs for span in run] + [span for span, _ in self.frames]
        order = _tokens(spans)
        assert len(order) == self.at
        place = np.empty_like(order)
        place[order] = np.arange(self.at, dtype=np.int32)
        buffer = IndexBuffer()
        moved = not np.array_equal(order, np.arange(self.at))
        order_at, place_at = (buffer.add(order), buffer.add(place)) if moved else (None, None)
        calls = self._calls(buffer, long)
        frames = self._frames(buffer, place) if self.frames else None
        tiles_at = buffer.add(self._tiles(place))
        buffer.send(device)
        return VarlenPlan(
            None if order_at is None else buffer.view(order_at),
            None if place_at is None else buffer.view(place_at),
            tuple(Call(begin, end, None if rows is None else _segments(buffer, *rows)) for begin, end, rows in calls),
            None if frames is None else frames(),
            buffer.view(tiles_at),
            buffer.nbytes,
        )

    def _calls(self, buffer: IndexBuffer, long: int) -> list[tuple[int, int, tuple[Rows, int] | None]]:
        """Return begin, end and sequences of each call: consecutive short runs share one."""
        calls: list[tuple[int, int, tuple[Rows, int] | None]] = []
        begin, lengths = 0, list[int]()

        def close() -> None:
            if lengths:
                calls.append((begin, begin + sum(lengths), (buffer.add(_begins(lengths)), max(lengths))))

        for run in self.runs:
            length = sum(end - first for first, end in run)
            if long and length >= long:
                close()
                begin += sum(lengths)
                calls.append((begin, begin + length, None))
                begin, lengths = begin + length, []
            else:
                lengths.append(length)
        close()
        return calls

    def _frames(self, buffer: IndexBuffer, place: np.ndarray) -> _FrameRows:
        keys = [span for _, seen in self.frames for span in seen]
        lengths = [sum(end - begin for begin, end in seen) for _, seen in self.frames]
        own = [end - begin for (begin, end), _ in self.frames]
        # Spans are disjoint or equal, so the tokens of a span have been gathered equally often.
        times: dict[int, int] = {}
        shares: list[list[tuple[Range, Range]]] = []
        at = 0
        for begin, end in keys:
            number = times.get(begin, 0)
            times[begin] = number + 1
            if number == len(shares):
                shares.append([])
            shares[number].append(((at, at + end - begin), (begin, end)))
            at += end - begin
        pairs = [
            (buffer.add(_tokens([where for where, _ in share])), buffer.add(place[_tokens([span for _, span in share])]))
            for share in shares
        ]
        rows = buffer.add(_begins(own)), buffer.add(place[_tokens(keys)]), buffer.add(_begins(lengths))
        return _FrameRows(buffer, self.at - sum(own), rows, (max(own), max(lengths)), pairs)

    def _tiles(self, place: np.ndarray) -> np.ndarray:
        by_kind: dict[tuple[Scales, int], list[int]] = {}
        for scales, count, begin in self.spans:
            by_kind.setdefault((scales, count), []).append(begin)
        found = [
            (place[np.asarray(begins)][:, None, None] + _frame_tiles(scales, count)).reshape(-1, 3)
            for (scales, count), begins in by_kind.items()
        ]
        return np.concatenate(found) if found else np.empty((0, 3))


@functools.lru_cache(maxsize=64)
def _frame_tiles(scales: Scales, count: int) -> np.ndarray:
    """Return the tiles of a frame of `count` scales that begins at token 0, (tiles, 3)."""
    sizes = [rows * columns for rows, columns in scales[:count]]
    found = []
    begin = 0
    for size in sizes:
        found += [(first, begin, begin + size) for first in range(begin, begin + size, TILE) if size > 1]
        begin += size
    return np.asarray(found, dtype=np.int64).reshape(-1, 3)


@dataclass(frozen=True)
class _FrameRows:
    """`Frames` before its arrays are on the device; a call makes it."""

    buffer: IndexBuffer
    begin: int
    rows: tuple[Rows, Rows, Rows]
    longest: tuple[int, int]
    shares: list[tuple[Rows, Rows]]

    def __call__(self) -> Frames:
        view = self.buffer.view
        q_begins, keys, k_begins = self.rows
        q_segments, k_segments = (
            _segments(self.buffer, q_begins, self.longest[0]),
            _segments(self.buffer, k_begins, self.longest[1]),
        )
        return Frames(self.begin, q_segments, view(keys), k_segments, tuple((view(a), view(b)) for a, b in self.shares))


def _segments(buffer: IndexBuffer, rows: Rows, longest: int) -> Segments:
    return Segments(buffer.view(rows), longest)


def _begins(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths)))


def _tokens(spans: Sequence[Range]) -> np.ndarray:
    """Return the tokens of spans, one after the other, int32."""
    return np.concatenate([np.arange(begin, end, dtype=np.int32) for begin, end in spans] or [np.empty(0, dtype=np.int32)])
