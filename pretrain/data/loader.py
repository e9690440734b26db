"""From token shards to one rank's micro-batches, read ahead in a thread.

In:  the token datasets, the order of their samples, and which of how many ranks this is.
Out: one `StepData` per step: `Batch`es of equal shape, the same number of them on all ranks.

    Order.draw(step) ─▶ arrange: this rank's slots ─▶ TokenDatasets.read_many ─▶ prefix of frames ─▶ Batch (packed bits, as bytes)
                            └ beyond the batch: fill, weight 0     └ corrupt: the next readable row, reported

There is no state but the step. Keys and captions of the whole global batch come from the shards' tables, so ranks need not
communicate. A micro-batch is read and checked by few calls; only one that holds a corrupt sample is read sample by sample.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from pipeline.records import TokenSample
from pretrain.data.batch import Arrangement, Batch, arrange
from pretrain.data.config import ranks_per_sequence
from pretrain.data.curriculum import CurriculumStep, StreamName
from pretrain.data.sample_order import Draw, Numbers, Order, Slot
from pretrain.data.token_datasets import DataError, FoundBatch, TokenDatasets

MAX_REPLACEMENTS = 64
"""After this many corrupt rows in succession the dataset is given up."""


class TextEncoder(Protocol):
    """What the loader needs of pretrain.model.text_tokenizer.TextTokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        ...


@dataclass(frozen=True)
class LoaderConfig:
    """How samples become micro-batches, and how far ahead they are read."""

    micro_batch: int
    """Most samples of a micro-batch (train.micro_batch)."""
    text_length: int
    """Most text tokens of a sample (model.text_length)."""
    pack_tokens: int = 0
    """Most tokens of a packed row; 0 = never pack (train.pack_tokens)."""
    pack_above: float = 0.0
    """Pack when the unpacked arrangement wastes more than this share of its positions (train.pack_above)."""
    prefetch: int = 0
    """Steps to read ahead in a thread; 0 reads each step when it is asked for (train.prefetch)."""
    pin: bool = False
    """Put batches into page-locked memory, for a GPU."""


@dataclass(frozen=True)
class StepData:
    """One rank's share of one global batch."""

    curriculum_step: CurriculumStep
    batches: tuple[Batch, ...]
    ids: tuple[str, ...]
    """Keys of the whole global batch as planned, in slot order."""
    replaced: tuple[tuple[int, str], ...]
    """(slot, key of the sample read instead) for each corrupt sample of this rank."""
    tokens: int
    """Positions of this rank that count, text and video."""
    text: float
    """Mean text tokens per sample of the global batch."""
    positions: int
    """Positions that all ranks together compute for this step, padding included."""


@dataclass(frozen=True)
class _Samples:
    """What is read for one micro-batch, in its order."""

    keys: tuple[str, ...]
    texts: list[list[int]]
    bits: npt.NDArray[np.uint8]
    features: npt.NDArray[np.uint8] | None


class Loader:
    """Iterates over `steps` of the order. Use it as a context manager; leaving it stops the thread."""

    def __init__(
        self,
        datasets: TokenDatasets,
        order: Order,
        text: TextEncoder,
        config: LoaderConfig,
        *,
        rank: int,
        world: int,
        steps: range,
    ) -> None:
        self.datasets, self.order, self.text, self.config = datasets, order, text, config
        self.rank, self.world, self.steps = rank, world, steps
        self._pool: ThreadPoolExecutor | None = None
        datasets.hold(order.window)

    def __iter__(self) -> Iterator[StepData]:
        if self.config.prefetch == 0:
            yield from map(self.load, self.steps)
            return
        # A future carries any error of the thread to the step that it belongs to.
        self._pool = pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        remaining = iter(self.steps)
        ahead = deque(pool.submit(self.load, step) for step in islice(remaining, self.config.prefetch + 1))
        while ahead:
            item = ahead.popleft().result()
            ahead.extend(pool.submit(self.load, step) for step in islice(remaining, 1))
            yield item

    def load(self, step: int) -> StepData:
        """Read one step. Raises DataError or OSError when the data cannot be read."""
        at = self.order.curriculum.at(step)
        # Ranks that share sequences read the same samples; only the first of them counts its tokens.
        together = ranks_per_sequence(at.stage, self.world)
        rank, world, counts = self.rank // together, self.world // together, self.rank % together == 0
        stream, count = at.stream, at.mix.batch
        drawn = self.order.draw(at)
        found = self.datasets.find(stream, drawn)
        keys, texts = found.keys, [self._encode(caption) for caption in found.captions]
        lengths = [len(text) for text in texts]
        grid = self.datasets.grid(stream)
        video = grid[0] * self.datasets.spec.positions(*grid[1:])
        config = self.config
        arrangement = arrange(
            lengths, video, config.text_length,
            micro_batch=config.micro_batch, world=world, budget=config.pack_tokens, above=config.pack_above,
        )  # fmt: skip

        batches: list[Batch] = []
        replaced: list[tuple[int, str]] = []
        tokens = 0
        for numbers in arrangement.micro_batches[rank]:
            slots = [number % count for number in numbers]
            samples = self._read(stream, drawn, found, slots, texts)
            counted = [i for i, number in enumerate(numbers) if number < count]
            replaced += [(numbers[i], samples.keys[i]) for i in counted if samples.keys[i] != found.keys[slots[i]]]
            tokens += sum([video + len(samples.texts[i]) for i in counted])
            weight = np.zeros(len(slots), dtype=np.float32)
            weight[counted] = 1 / count
            spans = tuple(max(1, lengths[slot]) for slot in slots) if arrangement.row else ()
            batches.append(self._batch(samples, weight, drawn.seeds[slots], grid, arrangement, spans))
        return StepData(
            curriculum_step=at,
            batches=tuple(batches),
            ids=tuple(keys),
            replaced=tuple(replaced) if counts else (),
            tokens=tokens if counts else 0,
            text=sum(lengths) / count,
            positions=arrangement.positions,
        )

    def _encode(self, caption: str) -> list[int]:
        return self.text.encode(caption)[: self.config.text_length]

    def _read(
        self, stream: StreamName, drawn: Draw, found: FoundBatch, slots: Sequence[int], texts: Sequence[list[int]]
    ) -> _Samples:
        """Read the slots of a micro-batch. texts: of all slots."""
        spec, grid = self.datasets.spec, self.datasets.grid(stream)
        size, values = grid[0] * spec.frame_bytes(*grid[1:]), 2 * grid[0] * spec.bits * grid[1] * grid[2]
        keys, own = [found.keys[slot] for slot in slots], [texts[slot] for slot in slots]
        read = self.datasets.read_many(found, slots, size, values)
        if read is not None:
            return _Samples(tuple(keys), own, read.bits, read.features)
        samples = [self._readable(stream, drawn.slot(slot)) for slot in slots]
        for i, sample in enumerate(samples):
            if len(sample.bits) < size:
                raise DataError(f"sample {sample.key}: {len(sample.bits)} bytes of bits, {size} expected for grid {grid}")
            if sample.key != keys[i]:
                # The shapes are planned, so the text of a sample that replaces a corrupt one is cut to that one's length.
                keys[i], own[i] = sample.key, self._encode(sample.caption)[: len(own[i])]
        features = [sample.features for sample in samples if sample.features is not None]
        return _Samples(
            keys=tuple(keys),
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

    def _batch(
        self,
        samples: _Samples,
        weight: npt.NDArray[np.float32],
        seeds: Numbers,
        grid: tuple[int, int, int],
        arrangement: Arrangement,
        spans: tuple[int, ...],
    ) -> Batch:
        lengths = np.array([len(text) for text in samples.texts])
        text = np.zeros((len(lengths), arrangement.text), dtype=np.int64)
        text[np.arange(arrangement.text) < lengths[:, None]] = list(chain.from_iterable(samples.texts))
        shape = (len(lengths), grid[0], self.datasets.spec.bits, *grid[1:])
        batch = Batch(
            bits=torch.from_numpy(samples.bits),
            text=torch.from_numpy(text),
            text_length=torch.from_numpy(lengths),
            weight=torch.from_numpy(weight),
            seeds=torch.from_numpy(seeds),
            grid=grid,
            ids=samples.keys,
            row=arrangement.row,
            spans=spans,
            features=None if samples.features is None else torch.from_numpy(samples.features).view(torch.bfloat16).view(shape),
        )
        return batch.pin_memory() if self.config.pin else batch

    def close(self) -> None:
        """Stop reading ahead and wait for the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
