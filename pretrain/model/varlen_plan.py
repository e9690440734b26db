"""The attention mask as few calls of variable-length attention: integers made from the layout, no tensor of L x L.

In:  the documents of a row, real text lengths, window, hidden frames, all on the host.
Out: a `VarlenPlan`: index tensors on the device for up to three calls, whose results flash_attention.py merges exactly.

Legend: B rows, L tokens of a row, N = B x L tokens, G documents, T latent frames, S sequences of a call.

    part         queries                        keys                              mask
    causal       runs of consecutive tokens     the same tokens                   lower triangle
    own scale    a scale's tokens but the last  the scale's tokens but the first  upper triangle: the later tokens of one's scale
    history      the tokens of a later run      text and frames of earlier runs   none

A run is text, or frames of which each sees all that stands before it in the run. A new run begins after padded text, after a hidden
frame, and at each frame from which the window has begun to move; the history part gives back what such frames do see. Without
these, a document is one run and there is no history part. The upper triangle is made a lower one by reversing its tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.model.token_layout import Layout

Range = tuple[int, int]
"""Begin and end of consecutive tokens."""


@dataclass(frozen=True)
class Segments:
    """The sequences of a call, one after the other."""

    begins: Tensor
    """int32 (S + 1): where each sequence begins, and the total."""
    longest: int
    """Tokens of the longest sequence."""


@dataclass(frozen=True)
class Part:
    """A call on gathered tokens, whose result is merged into that of the causal part."""

    q: Tensor
    """int32: the token of each gathered query; a token is gathered once at most."""
    k: Tensor
    """int32: the token of each gathered key; a token may be a key of several sequences."""
    q_place: Tensor
    """int32 (N): place of each token among the gathered queries; their number if it is not among them."""
    k_places: Tensor
    """int32 (M, N): places of each token among the gathered keys, at most M; the rest is their number."""
    q_segments: Segments
    k_segments: Segments
    causal: bool


@dataclass(frozen=True)
class VarlenPlan:
    """Attention of N tokens."""

    tokens: int
    causal: Segments
    own_scale: Part | None
    history: Part | None

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor."""
        parts = [part for part in (self.own_scale, self.history) if part is not None]
        return max([self.causal.begins.nbytes, *(max(part.q.nbytes, part.k.nbytes, part.k_places.nbytes) for part in parts)])


@dataclass(frozen=True)
class Run:
    """Consecutive tokens, and the earlier keys that all of them see."""

    tokens: Range
    history: tuple[Range, ...] = ()


def make_plan(
    documents: Sequence[Layout],
    text_length: Sequence[Sequence[int]],
    window: int,
    hidden: Sequence[Sequence[Sequence[bool]]] | None,
    padding: int,
    device: torch.device,
) -> VarlenPlan:
    """Return the plan of B rows of equal structure; it is kept while nothing changes.

    text_length: (B, G) real text tokens. window: latent frames of history, 0 = all. hidden: (B, G, T) frames that later frames do
    not see. padding: tokens after a row's last document. Padding and padded text attend among themselves only.
    """
    frozen = None if hidden is None else tuple(tuple(tuple(frames) for frames in row) for row in hidden)
    return _plan(tuple(documents), tuple(tuple(row) for row in text_length), window, frozen, padding, device)


@functools.lru_cache(maxsize=16)
def _plan(
    documents: tuple[Layout, ...],
    text_length: tuple[tuple[int, ...], ...],
    window: int,
    hidden: tuple[tuple[tuple[bool, ...], ...], ...] | None,
    padding: int,
    device: torch.device,
) -> VarlenPlan:
    found: list[Run] = []
    scales: list[Range] = []
    at = 0
    for row, lengths in enumerate(text_length):
        for number, (layout, text) in enumerate(zip(documents, lengths, strict=True)):
            found += runs(layout, at, min(text, layout.text), window, hidden[row][number] if hidden else ())
            spans = (layout.span(frame, scale) for frame in range(layout.frames) for scale in range(layout.scales_of(frame)))
            scales += [(at + begin, at + end) for begin, end in spans if end - begin > 1]
            at += layout.length
        if padding:
            found.append(Run((at, at + padding)))
            at += padding
    buffer = _HostBuffer()
    begins = buffer.add(_begins([run.tokens[1] - run.tokens[0] for run in found]))
    own_scale = _own_scale(scales, at, buffer) if scales else None
    later = [run for run in found if run.history]
    history = _history(later, at, buffer) if later else None
    return buffer.to(device).plan(at, begins, max(run.tokens[1] - run.tokens[0] for run in found), own_scale, history)


def runs(layout: Layout, at: int, text: int, window: int, hides: Sequence[bool]) -> list[Run]:
    """Return the runs of a document that begins at token `at` and has `text` real text tokens; they cover it in order."""
    found: list[Run] = []
    words = ((at, at + text),) if text else ()
    if text < layout.text:
        found += [Run(span) for span in (*words, (at + text, at + layout.text))]
    spans = [
        (at + layout.span(frame, 0)[0], at + layout.span(frame, layout.scales_of(frame) - 1)[1])
        for frame in range(layout.frames)
    ]
    begin, history = (at, ()) if text == layout.text else (at + layout.text, words)
    for frame in range(1, layout.frames):
        if (window and frame > window) or (hides and hides[frame - 1]):
            found.append(Run((begin, spans[frame][0]), history))
            earlier = range(max(0, frame - window) if window else 0, frame)
            begin, history = spans[frame][0], (*words, *(spans[f] for f in earlier if not (hides and hides[f])))
    end = spans[-1][1] if spans else at + layout.text
    return [*found, Run((begin, end), history)] if end > begin else found


@dataclass(frozen=True)
class _Rows:
    """Where a flat array lies in the buffer, and its shape."""

    begin: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _PartRows:
    """A `Part` before its arrays are on the device."""

    arrays: tuple[_Rows, _Rows, _Rows, _Rows, _Rows, _Rows]
    longest: tuple[int, int]
    causal: bool


class _HostBuffer:
    """All integers of a plan in one array, so that one copy takes them to the device."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._size = 0
        self._moved = torch.empty(0)

    def add(self, array: np.ndarray) -> _Rows:
        rows = _Rows(self._size, array.shape)
        self._arrays.append(array.reshape(-1).astype(np.int32, copy=False))
        self._size += -(-array.size // 4) * 4  # each array begins at a multiple of 16 bytes
        self._arrays.append(np.zeros(self._size - rows.begin - array.size, dtype=np.int32))
        return rows

    def to(self, device: torch.device) -> _HostBuffer:
        flat = torch.from_numpy(np.concatenate(self._arrays))
        self._moved = flat.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else flat
        return self

    def plan(
        self, tokens: int, begins: _Rows, longest: int, own_scale: _PartRows | None, history: _PartRows | None
    ) -> VarlenPlan:
        return VarlenPlan(tokens, Segments(self._view(begins), longest), self._part(own_scale), self._part(history))

    def _part(self, rows: _PartRows | None) -> Part | None:
        if rows is None:
            return None
        q, k, q_place, k_places, q_begins, k_begins = (self._view(item) for item in rows.arrays)
        segments = Segments(q_begins, rows.longest[0]), Segments(k_begins, rows.longest[1])
        return Part(q, k, q_place, k_places, *segments, rows.causal)

    def _view(self, rows: _Rows) -> Tensor:
        count = int(np.prod(rows.shape))
        return self._moved[rows.begin : rows.begin + count].view(rows.shape)


def _begins(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths)))


def _own_scale(scales: list[Range], tokens: int, buffer: _HostBuffer) -> _PartRows:
    q = np.concatenate([np.arange(end - 2, begin - 1, -1) for begin, end in scales])
    lengths = [end - begin - 1 for begin, end in scales]
    return _part(q, q + 1, (lengths, lengths), tokens, causal=True, buffer=buffer)


def _history(later: list[Run], tokens: int, buffer: _HostBuffer) -> _PartRows:
    q = np.concatenate([np.arange(*run.tokens) for run in later])
    k = np.concatenate([np.arange(begin, end) for run in later for begin, end in run.history])
    q_lengths = [run.tokens[1] - run.tokens[0] for run in later]
    k_lengths = [sum(end - begin for begin, end in run.history) for run in later]
    return _part(q, k, (q_lengths, k_lengths), tokens, causal=False, buffer=buffer)


def _part(
    q: np.ndarray, k: np.ndarray, lengths: tuple[list[int], list[int]], tokens: int, *, causal: bool, buffer: _HostBuffer
) -> _PartRows:
    arrays = (q, k, _places(q, tokens)[0], _places(k, tokens), _begins(lengths[0]), _begins(lengths[1]))
    first, second, third, fourth, fifth, sixth = (buffer.add(array) for array in arrays)
    return _PartRows((first, second, third, fourth, fifth, sixth), (max(lengths[0]), max(lengths[1])), causal)


def _places(gathered: np.ndarray, tokens: int) -> np.ndarray:
    """Return the places of each token among the gathered ones, (M, tokens); the number of gathered ones where there are no more."""
    order = np.argsort(gathered, kind="stable")
    ordered = gathered[order]
    # How many equal tokens stand before: the distance to where the equal ones begin.
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    found = np.full((int(rank.max()) + 1, tokens), len(gathered))
    found[rank, ordered] = order
    return found
