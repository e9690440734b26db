"""The samples of micro-batches, read and checked by few calls for all of them.

In:  the token datasets, a draw and what was found of it, and which slots each micro-batch takes.
Out: `Samples` for each micro-batch. A corrupt sample is replaced by the next readable row; only then are samples read one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise

import numpy as np
import numpy.typing as npt

from pipeline.records import TokenSample
from pretrain.data.curriculum import StreamName
from pretrain.data.sample_order import Draw, Slot
from pretrain.data.token_datasets import DataError, FoundBatch, TokenDatasets

MAX_REPLACEMENTS = 64
"""After this many corrupt rows in succession the dataset is given up."""


@dataclass(frozen=True)
class Samples:
    """What is read for one micro-batch, in its order."""

    keys: list[str]
    texts: list[list[int]]
    """Text tokens."""
    bits: npt.NDArray[np.uint8]
    """(B, bytes): packed bits."""
    features: npt.NDArray[np.uint8] | None
    """(B, bytes): bfloat16; None unless all of the samples have features."""

    def part(self, begin: int, end: int) -> Samples:
        """Return neighbouring samples; their bytes are not copied."""
        features = None if self.features is None else self.features[begin:end]
        return Samples(self.keys[begin:end], self.texts[begin:end], self.bits[begin:end], features)


class SampleReader:
    """Reads slots of what `TokenDatasets.find` found. encode: text to its tokens, cut to the longest that is trained on."""

    def __init__(self, datasets: TokenDatasets, encode: Callable[[str], list[int]]) -> None:
        self.datasets, self._encode = datasets, encode

    def read(
        self, stream: StreamName, drawn: Draw, found: FoundBatch, groups: Sequence[Sequence[int]], texts: Sequence[list[int]]
    ) -> list[Samples]:
        """Read the slots of each micro-batch. texts: of all slots. Raises DataError or OSError when the data cannot be read."""
        # Whether a micro-batch has features must not depend on what it is read together with.
        whole = None if found.mixed else self._together(stream, found, list(chain.from_iterable(groups)), texts)
        if whole is None:
            return [
                self._together(stream, found, slots, texts) or self._one_by_one(stream, drawn, found, slots, texts)
                for slots in groups
            ]
        return [whole.part(begin, end) for begin, end in pairwise(accumulate(map(len, groups), initial=0))]

    def _sizes(self, stream: StreamName) -> tuple[int, int]:
        """Return the bytes of a sample's packed bits, and of its features."""
        spec, grid = self.datasets.spec, self.datasets.grid(stream)
        return grid[0] * spec.frame_bytes(*grid[1:]), 2 * grid[0] * spec.bits * grid[1] * grid[2]

    def _together(
        self, stream: StreamName, found: FoundBatch, slots: Sequence[int], texts: Sequence[list[int]]
    ) -> Samples | None:
        """Read by few calls; None if a sample is damaged or too short."""
        read = self.datasets.read_many(found, slots, *self._sizes(stream))
        if read is None:
            return None
        return Samples([found.keys[slot] for slot in slots], [texts[slot] for slot in slots], read.bits, read.features)

    def _one_by_one(
        self, stream: StreamName, drawn: Draw, found: FoundBatch, slots: Sequence[int], texts: Sequence[list[int]]
    ) -> Samples:
        size, values = self._sizes(stream)
        keys, own = [found.keys[slot] for slot in slots], [texts[slot] for slot in slots]
        samples = [self._readable(stream, drawn.slot(slot)) for slot in slots]
        for i, sample in enumerate(samples):
            if len(sample.bits) < size:
                grid = self.datasets.grid(stream)
                raise DataError(f"sample {sample.key}: {len(sample.bits)} bytes of bits, {size} expected for grid {grid}")
            if sample.key != keys[i]:
                # The shapes are planned, so the text of a sample that replaces a corrupt one is cut to that one's length.
                keys[i], own[i] = sample.key, self._encode(sample.caption)[: len(own[i])]
        features = [sample.features for sample in samples if sample.features is not None]
        return Samples(
            keys=keys,
            texts=own,
            bits=np.stack([np.frombuffer(sample.bits, np.uint8, size) for sample in samples]),
            features=np.stack([np.frombuffer(part, np.uint8, values) for part in features])
            if len(features) == len(samples)
            else None,
        )

    def _readable(self, stream: StreamName, slot: Slot) -> TokenSample:
        """Read a slot; a corrupt row is replaced by the next readable row of its source, which depends on the row alone."""
        from pipeline.shards.reader import CorruptSample

        rows = self.datasets.rows(stream, slot.source)
        first: CorruptSample | None = None
        for distance in range(min(MAX_REPLACEMENTS, rows)):
            try:
                return self.datasets.read(stream, replace(slot, row=(slot.row + distance) % rows) if distance else slot)
            except CorruptSample as error:
                first = first or error
        raise DataError(f"{first}; {min(MAX_REPLACEMENTS, rows)} rows in a row are corrupt: run `videoar shards verify`")
