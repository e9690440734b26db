"""From token shards to a rank's micro-batches, read ahead in a thread.

In:  Corpus (data.py), Order (order.py), the rank's place among the ranks.
Out: one `StepData` a step: equal-shape `Batch`es, all ranks the same number of them.
Called by: train.py, evaluate.py, `videoar bench load`.

    Order.slots(step) ─▶ arrange: slots r, r+W.. ─▶ Corpus.read ─▶ prefix of frames ─▶ Batch (packed bits, as bytes)
                             └ past the batch: fill, weight 0    └ corrupt: next readable row, counted

State: none but the step. Sample keys of the whole global batch come from the index, so no rank asks another.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.records import TokenSample
from pretrain.data.batch import Batch
from pretrain.data.config import size_of
from pretrain.data.curriculum import Place
from pretrain.data.micro_batches import Arrangement, arrange
from pretrain.data.sample_order import Order, Slot
from pretrain.data.token_datasets import Corpus, DataError

MAX_REPLACEMENTS = 64
"""Corrupt rows in a row after which the data set is given up."""


class TextEncoder(Protocol):
    """What the loader needs of pretrain.text.TextTokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        ...


@dataclass(frozen=True)
class StepData:
    """One rank's share of one global batch."""

    place: Place
    batches: tuple[Batch, ...]
    ids: tuple[str, ...]
    """Keys of the whole global batch as planned, in slot order."""
    replaced: tuple[tuple[int, str], ...]
    """(slot, key read in its place) of this rank's corrupt samples."""
    tokens: int
    """Positions of this rank that count, text and video."""
    text: float
    """Mean text tokens of a sample of the global batch."""
    positions: int
    """Positions that all ranks compute for this step, padding included."""


class Loader:
    """Iterates over the steps `first_step`..`last_step` of the order. Use as a context manager; closing stops the thread."""

    def __init__(
        self,
        corpus: Corpus,
        order: Order,
        text: TextEncoder,
        *,
        rank: int,
        world: int,
        micro_batch: int,
        text_length: int,
        first_step: int,
        last_step: int,
        prefetch: int,
        pin: bool = False,
        pack_tokens: int = 0,
        pack_above: float = 0.0,
    ) -> None:
        self.corpus, self.order, self.text = corpus, order, text
        self.rank, self.world, self.micro_batch, self.text_length = rank, world, micro_batch, text_length
        self.first_step, self.last_step, self.prefetch, self.pin = first_step, last_step, prefetch, pin
        self.pack_tokens, self.pack_above = pack_tokens, pack_above
        self._stop = threading.Event()
        self._queue: queue.Queue[StepData | BaseException] = queue.Queue(maxsize=max(1, prefetch))
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[StepData]:
        steps = range(self.first_step, self.last_step + 1)
        if self.prefetch == 0:
            for step in steps:
                yield self.load(step)
            return
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()
        for _ in steps:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        for step in range(self.first_step, self.last_step + 1):
            item: StepData | BaseException
            try:
                item = self.load(step)
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                item = error
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if self._stop.is_set() or isinstance(item, BaseException):
                return

    def load(self, step: int) -> StepData:
        """Read one step. Raises DataError or OSError when the data cannot be read."""
        place = self.order.curriculum.at(step)
        # Ranks that share sequences read the same samples; the first of them counts.
        together = size_of(place.stage, self.world)
        rank, world, counted = self.rank // together, self.world // together, self.rank % together == 0
        stream, count = place.stream, place.mix.batch
        slots, seeds = self.order.slots(step), self.order.seeds(step)
        ids = tuple(self.corpus.key(stream, slot) for slot in slots)
        texts = [self.text.encode(self.corpus.caption(stream, slot))[: self.text_length] for slot in slots]
        lengths = [len(tokens) for tokens in texts]
        grid = self.corpus.grid(stream)
        video = grid[0] * self.corpus.spec.positions(*grid[1:])
        plan = arrange(
            lengths, video, self.text_length,
            micro_batch=self.micro_batch, world=world, budget=self.pack_tokens, above=self.pack_above,
        )  # fmt: skip
        replaced: list[tuple[int, str]] = []
        batches, tokens = [], 0
        for numbers in plan.micro_batches[rank]:
            samples, counts = [], [number < count for number in numbers]
            for number in numbers:
                sample = self._read(stream, slots[number % count])
                if number < count and sample.key != ids[number]:
                    replaced.append((number, sample.key))
                samples.append(sample)
            # A text that stands in for a corrupt sample's is cut to that one's length: the shapes are planned.
            told = [
                texts[number % count]
                if sample.key == ids[number % count]
                else self.text.encode(sample.caption)[: lengths[number % count]]
                for number, sample in zip(numbers, samples)
            ]
            limits = [lengths[number % count] for number in numbers]
            batch = self._batch(samples, told, limits, [seeds[n % count] for n in numbers], counts, 1 / count, grid, plan)
            tokens += sum(video + int(length) for length, real in zip(batch.text_length.tolist(), counts) if real)
            batches.append(batch)
        return StepData(
            place=place, batches=tuple(batches), ids=ids, replaced=tuple(replaced if counted else ()),
            tokens=tokens if counted else 0,
            text=sum(lengths) / count, positions=plan.positions,
        )  # fmt: skip

    def _read(self, stream: tuple[str, int], slot: Slot) -> TokenSample:
        """Read a slot; a corrupt row gives way to the next readable row of its source: a rule of the row alone."""
        from pipeline.shards.reader import CorruptSample

        rows = self.corpus.rows(stream, slot.source)
        first: CorruptSample | None = None
        for distance in range(min(MAX_REPLACEMENTS, rows)):
            try:
                return self.corpus.read(stream, replace(slot, row=(slot.row + distance) % rows) if distance else slot)
            except CorruptSample as error:
                first = first or error
        raise DataError(f"{first}; {min(MAX_REPLACEMENTS, rows)} rows in a row are corrupt: run `videoar shards verify`")

    def _batch(
        self,
        samples: list[TokenSample],
        told: list[list[int]],
        limits: list[int],
        seeds: list[int],
        counts: list[bool],
        weight: float,
        grid: tuple[int, int, int],
        plan: Arrangement,
    ) -> Batch:
        frame_bytes = self.corpus.spec.frame_bytes(*grid[1:])
        size = grid[0] * frame_bytes
        # Rows are filled as numpy arrays: a torch operation a row would cost more than reading the sample.
        bits = np.empty((len(samples), size), dtype=np.uint8)
        text = np.zeros((len(samples), plan.text), dtype=np.int64)
        lengths = np.zeros(len(samples), dtype=np.int64)
        for i, sample in enumerate(samples):
            if len(sample.bits) < size:
                raise DataError(f"sample {sample.key}: {len(sample.bits)} bytes of bits, {size} expected for grid {grid}")
            bits[i] = np.frombuffer(sample.bits, dtype=np.uint8, count=size)
            tokens = told[i]
            text[i, : len(tokens)] = tokens
            lengths[i] = len(tokens)
        batch = Batch(
            bits=torch.from_numpy(bits),
            text=torch.from_numpy(text),
            text_length=torch.from_numpy(lengths),
            weight=torch.tensor([weight if real else 0.0 for real in counts], dtype=torch.float32),
            seeds=torch.tensor(seeds, dtype=torch.int64),
            grid=grid,
            ids=tuple(sample.key for sample in samples),
            row=plan.row,
            spans=tuple(max(1, limit) for limit in limits) if plan.row else (),
            features=self._features(samples, grid),
        )
        return _pinned(batch) if self.pin else batch

    def _features(self, samples: list[TokenSample], grid: tuple[int, int, int]) -> Tensor | None:
        if any(sample.features is None for sample in samples):
            return None
        frames, rows, columns = grid
        count = frames * self.corpus.spec.bits * rows * columns
        shape = (frames, self.corpus.spec.bits, rows, columns)
        parts = [torch.frombuffer(bytearray(sample.features or b""), dtype=torch.bfloat16, count=count) for sample in samples]
        return torch.stack([part.view(shape) for part in parts])

    def close(self) -> None:
        """Stop reading ahead and wait for the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _pinned(batch: Batch) -> Batch:
    names = ("bits", "text", "text_length", "weight", "seeds")
    features = None if batch.features is None else batch.features.pin_memory()
    return replace(batch, features=features, **{name: getattr(batch, name).pin_memory() for name in names})
