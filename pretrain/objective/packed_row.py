"""Packing: short samples share one row of tokens, under a token budget, without seeing each other.

In:  samples of one layout, the text tokens that each keeps, the length of the row.
Out: a `PackedRow`, which moves tokens between samples and row and attends within samples.

Legend: G samples in the row, P padded text tokens, N video tokens, L = P + N, R tokens of the row, H heads, D head dimension.

pretrain/data/batch.py decides when to pack, and which samples share a row:

    sample 0: t t t . . v v v v      row: t t t v v v v | t v v v v | t t v v v v | . .
    sample 1: t . . . . v v v v           no padding but the end of the row, which makes all rows equally long
    sample 2: t t . . . v v v v

Everything in a block but attention runs on the row. The backend `blocks` lays queries, keys and values out by sample again, where
equal shapes make large products (what it pads costs attention only); the others get a mask with documents. For `flash` and `cudnn`
every micro-batch is laid out so, since samples without padded text are whole runs of their plan, and the row takes its order.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pretrain.attention import flash_attention
from pretrain.attention.attention import VARLEN, Attend, Backend, Mask, bind_mask, plan_of, resolve
from pretrain.attention.token_layout import Layout, sent
from pretrain.attention.varlen_plan import VarlenPlan


@dataclass(frozen=True)
class PackedRow:
    """Where the tokens of G samples are in the row that they share."""

    layout: Layout
    """Of one sample, with padded text."""
    spans: tuple[int, ...]
    """Text tokens that each sample keeps in the row."""
    to_row: Tensor
    """int64 (R): the token at each place of the row, numbered over G x L; 0 where the row is padding."""
    to_samples: Tensor
    """int64 (G, L): the place in the row of each token; 0 for text that was left out."""
    padding: int
    """Tokens after the last sample."""

    @classmethod
    def make(cls, layout: Layout, spans: tuple[int, ...], row: int, device: torch.device) -> PackedRow:
        """Lay the samples one after the other into a row of `row` tokens, which must hold them all. Kept while nothing changes."""
        return _packed_row(layout, spans, row, device)

    def join(self, x_GLx: Tensor) -> Tensor:
        """Return the row (1, R, ...) of samples (G, L, ...)."""
        return x_GLx.flatten(0, 1).index_select(0, self.to_row).unsqueeze(0)

    def video(self, x_1Rx: Tensor) -> Tensor:
        """Return the samples' video tokens (G, N, ...) of a row."""
        places = self.to_samples[:, self.layout.text :]
        video: Tensor = x_1Rx[0].index_select(0, places.flatten()).unflatten(0, places.shape)
        return video

    def bind(
        self, backend: Backend, mask: Mask, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> tuple[PackedRow, Attend]:
        """Return this row with its tokens in the order that attention wants, and attention over it.

        mask: of the unpacked samples, one document per row. device, dtype: of the queries.
        """
        backend = resolve(backend, device, dtype)
        if backend == "blocks":
            return self, self._by_sample(bind_mask(backend, mask, device, dtype))
        documents = tuple(Layout(span, self.layout.frames, self.layout.scales) for span in self.spans)
        hidden = None if mask.hidden is None else mask.hidden.transpose(0, 1)
        packed = Mask(documents, mask.text_length.transpose(0, 1), mask.window, hidden, self.padding)
        if backend not in VARLEN:
            return self, bind_mask(backend, packed, device, dtype)
        plan = plan_of(packed, backend, device)
        return self._ordered(plan), lambda layer, q, k, v: flash_attention.attend(q, k, v, plan, ordered=True)

    def _ordered(self, plan: VarlenPlan) -> PackedRow:
        if plan.order is None or plan.place is None:
            return self
        to_samples = plan.place.index_select(0, self.to_samples.flatten()).view(self.to_samples.shape)
        return replace(self, to_row=self.to_row.index_select(0, plan.order), to_samples=to_samples.to(torch.int64))

    def _by_sample(self, inner: Attend) -> Attend:

        def by_sample(x_1HRD: Tensor) -> Tensor:
            tokens_GLHD = x_1HRD[0].transpose(0, 1).index_select(0, self.to_samples.flatten())
            samples: Tensor = tokens_GLHD.unflatten(0, self.to_samples.shape).transpose(1, 2)
            return samples

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out_GHLD = inner(layer, by_sample(q), by_sample(k), by_sample(v))
            return self.join(out_GHLD.transpose(1, 2)).transpose(1, 2)

        return attend


@functools.lru_cache(maxsize=16)
def _packed_row(layout: Layout, spans: tuple[int, ...], row: int, device: torch.device) -> PackedRow:
    to_row = np.zeros(row, dtype=np.int64)
    to_samples = np.zeros((len(spans), layout.length), dtype=np.int64)
    at = 0
    for number, span in enumerate(spans):
        kept = np.concatenate((np.arange(span), np.arange(layout.text, layout.length)))
        assert span <= layout.text and at + len(kept) <= row
        to_row[at : at + len(kept)] = number * layout.length + kept
        to_samples[number, kept] = np.arange(at, at + len(kept))
        at += len(kept)
    return PackedRow(
        layout, spans, sent(torch.from_numpy(to_row), device), sent(torch.from_numpy(to_samples), device), row - at
    )
