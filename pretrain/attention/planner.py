"""Makes the plan of attention from the layout of a row: integers on the host, one copy to the device.

In:  the documents of a row, real text lengths, window, hidden frames, padding, all on the host.
Out: a `VarlenPlan`, kept while nothing changes.

A frame is in its document's run if it is not hidden and sees all that stands before it there. Frames that later ones do not see,
and those from which the window has begun to move, stand at the end of the plan's order. Padded text and a row's padding attend
among themselves, or also to what stands before them: nothing reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pretrain.attention.index_buffer import IndexBuffer, Rows, Span
from pretrain.attention.token_layout import Layout
from pretrain.attention.varlen_plan import LONG_MULTIPLE, TILE, Call, Frames, Segments, VarlenPlan
from tokenizer.quantization.scale_schedule import Scales


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
        self.runs: list[list[Span]] = []
        self.frames: list[tuple[Span, list[Span]]] = []
        self.spans: list[tuple[Scales, int, int]] = []
        self.padding: list[Span] = []

    def add(self, layout: Layout, text: int, window: int, hides: Sequence[bool]) -> None:
        """Take the next document, which has `text` real text tokens."""
        base, video = self.at, self.at + layout.text
        words = [(base, base + text)] if text else []
        run, seen = list(words), list[tuple[int, Span]]()
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
        """Take padding."""
        if count:
            self.padding.append((self.at, self.at + count))
        self.at += count

    def place_padding(self, long: int) -> None:
        """Let long runs end with padding, the last one with all that is left; else it is the end of its neighbour, or a run."""
        runs = [run for run in self.runs if long and _count(run) >= long]
        for run in runs[:-1]:
            need = -_count(run) % LONG_MULTIPLE
            while need and self.padding:
                begin, end = self.padding.pop(0)
                middle = min(begin + need, end)
                run.append((begin, middle))
                need -= middle - begin
                if middle < end:
                    self.padding.insert(0, (middle, end))
        if runs:
            runs[-1].extend(self.padding)
            return
        for span in self.padding:
            neighbour = next((run for run in self.runs if run[-1][1] == span[0]), None)
            if neighbour is None:
                self.runs.append([span])
            else:
                neighbour.append(span)

    def finish(self, device: torch.device, long: int) -> VarlenPlan:
        """Return the plan."""
        self.place_padding(long)
        spans = [span for run in self.runs for span in run] + [span for span, _ in self.frames]
        place: dict[int, int] = {}
        at = 0
        for begin, end in spans:
            place[begin] = at
            at += end - begin
        assert at == self.at
        buffer = IndexBuffer()
        in_order = sorted(spans)
        moved = in_order != spans
        order_at, place_at = (
            (buffer.add_spans(spans), buffer.add_spans([_moved(span, place) for span in in_order])) if moved else (None, None)
        )
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
            length = _count(run)
            if long and length >= long:
                close()
                begin += sum(lengths)
                calls.append((begin, begin + length, None))
                begin, lengths = begin + length, []
            else:
                lengths.append(length)
        close()
        return calls

    def _frames(self, buffer: IndexBuffer, place: dict[int, int]) -> _FrameRows:
        keys = [span for _, seen in self.frames for span in seen]
        lengths = [_count(seen) for _, seen in self.frames]
        own = [end - begin for (begin, end), _ in self.frames]
        # Spans are disjoint or equal, so the tokens of a span have been gathered equally often.
        times: dict[int, int] = {}
        shares: list[list[tuple[Span, Span]]] = []
        at = 0
        for begin, end in keys:
            number = times.get(begin, 0)
            times[begin] = number + 1
            if number == len(shares):
                shares.append([])
            shares[number].append(((at, at + end - begin), (begin, end)))
            at += end - begin
        pairs = [
            (buffer.add_spans([where for where, _ in share]), buffer.add_spans([_moved(span, place) for _, span in share]))
            for share in shares
        ]
        gathered = buffer.add_spans([_moved(span, place) for span in keys])
        rows = buffer.add(_begins(own)), gathered, buffer.add(_begins(lengths))
        return _FrameRows(buffer, self.at - sum(own), rows, (max(own), max(lengths)), pairs)

    def _tiles(self, place: dict[int, int]) -> np.ndarray:
        by_kind: dict[tuple[Scales, int], list[int]] = {}
        for scales, count, begin in self.spans:
            by_kind.setdefault((scales, count), []).append(place[begin])
        found = [
            (np.asarray(begins)[:, None, None] + _frame_tiles(scales, count)).reshape(-1, 3)
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


def _count(spans: Sequence[Span]) -> int:
    """Return the tokens of spans."""
    return sum(end - begin for begin, end in spans)


def _moved(span: Span, place: dict[int, int]) -> Span:
    """Return where the tokens of a span stand."""
    begin, end = span
    return place[begin], place[begin] + end - begin
