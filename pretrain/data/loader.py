"""From token shards to one rank's micro-batches, read ahead in a thread.

In:  the token datasets, the order of their samples, and which of how many ranks this is.
Out: one `StepData` per step: `Batch`es of equal shape, the same number of them on all ranks.

    Order.slots(step) ─▶ arrange: this rank's slots ─▶ TokenDatasets.read ─▶ prefix of frames ─▶ Batch (packed bits, as bytes)
                             └ beyond the batch: fill, weight 0     └ corrupt: the next readable row, reported

There is no state but the step. Keys and captions of the whole global batch come from the index, so ranks need not communicate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.records import TokenSample
from pretrain.data.batch import Arrangement, Batch, arrange
from pretrain.data.config import ranks_per_sequence
from pretrain.data.curriculum import CurriculumStep, StreamName
from pretrain.data.sample_order import Order, Slot
from pretrain.data.token_datasets import DataError, TokenDatasets

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
class _Entry:
    """One sample of a micro-batch."""

    sample: TokenSample
    text: list[int]
    room: int
    """Text tokens that the arrangement has room for."""
    seed: int
    is_fill: bool


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
        slots, seeds = self.order.slots(step), self.order.seeds(step)
        ids = tuple(self.datasets.key(stream, slot) for slot in slots)
        texts = [self._encode(self.datasets.caption(stream, slot)) for slot in slots]
        grid = self.datasets.grid(stream)
        video = grid[0] * self.datasets.spec.positions(*grid[1:])
        config = self.config
        arrangement = arrange(
            [len(text) for text in texts], video, config.text_length,
            micro_batch=config.micro_batch, world=world, budget=config.pack_tokens, above=config.pack_above,
        )  # fmt: skip

        batches: list[Batch] = []
        replaced: list[tuple[int, str]] = []
        tokens = 0
        for numbers in arrangement.micro_batches[rank]:
            entries = []
            for number in numbers:
                slot, is_fill = number % count, number >= count
                sample, text = self._read(stream, slots[slot]), texts[slot]
                room = len(text)
                if sample.key != ids[slot]:
                    # The shapes are planned, so the text of a sample that replaces a corrupt one is cut to that one's length.
                    text = self._encode(sample.caption)[:room]
                    if not is_fill:
                        replaced.append((number, sample.key))
                if not is_fill:
                    tokens += video + len(text)
                entries.append(_Entry(sample, text, room, seeds[slot], is_fill))
            batches.append(self._batch(entries, 1 / count, grid, arrangement))
        return StepData(
            curriculum_step=at,
            batches=tuple(batches),
            ids=ids,
            replaced=tuple(replaced) if counts else (),
            tokens=tokens if counts else 0,
            text=sum(map(len, texts)) / count,
            positions=arrangement.positions,
        )

    def _encode(self, caption: str) -> list[int]:
        return self.text.encode(caption)[: self.config.text_length]

    def _read(self, stream: StreamName, slot: Slot) -> TokenSample:
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

    def _batch(self, entries: Sequence[_Entry], weight: float, grid: tuple[int, int, int], arrangement: Arrangement) -> Batch:
        size = grid[0] * self.datasets.spec.frame_bytes(*grid[1:])
        # Rows are filled as numpy arrays: a torch operation per row would cost more than reading the sample.
        bits = np.empty((len(entries), size), dtype=np.uint8)
        text = np.zeros((len(entries), arrangement.text), dtype=np.int64)
        for i, entry in enumerate(entries):
            stored = entry.sample.bits
            if len(stored) < size:
                raise DataError(f"sample {entry.sample.key}: {len(stored)} bytes of bits, {size} expected for grid {grid}")
            bits[i] = np.frombuffer(stored, dtype=np.uint8, count=size)
            text[i, : len(entry.text)] = entry.text
        batch = Batch(
            bits=torch.from_numpy(bits),
            text=torch.from_numpy(text),
            text_length=torch.tensor([len(entry.text) for entry in entries], dtype=torch.int64),
            weight=torch.tensor([0.0 if entry.is_fill else weight for entry in entries], dtype=torch.float32),
            seeds=torch.tensor([entry.seed for entry in entries], dtype=torch.int64),
            grid=grid,
            ids=tuple(entry.sample.key for entry in entries),
            row=arrangement.row,
            spans=tuple(max(1, entry.room) for entry in entries) if arrangement.row else (),
            features=self._features([entry.sample for entry in entries], grid),
        )
        return batch.pin_memory() if self.config.pin else batch

    def _features(self, samples: Sequence[TokenSample], grid: tuple[int, int, int]) -> Tensor | None:
        if any(sample.features is None for sample in samples):
            return None
        frames, rows, columns = grid
        shape = (frames, self.datasets.spec.bits, rows, columns)
        count = frames * self.datasets.spec.bits * rows * columns
        parts = [torch.frombuffer(bytearray(sample.features or b""), dtype=torch.bfloat16, count=count) for sample in samples]
        return torch.stack([part.view(shape) for part in parts])

    def close(self) -> None:
        """Stop reading ahead and wait for the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
