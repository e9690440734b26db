"""From token shards to one rank's micro-batches, read ahead in a thread.

In:  the token datasets, the order of their samples, and which of how many ranks this is.
Out: one `StepData` per step: `Batch`es of equal shape, the same number of them on all ranks.

    Order.draw(steps) ─▶ arrange: this rank's slots ─▶ SampleReader.read ─▶ prefix of frames ─▶ Batch (packed bits, as bytes)
                             └ beyond the batch: fill, weight 0     └ corrupt: the next readable row, reported

There is no state but the step. Keys and captions of the whole global batch come from the shards' tables, so ranks need not
communicate. Steps are read ahead in blocks: samples of neighbouring steps are looked up, read and checked by few calls. What a
step holds does not depend on the block that it was read in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from pretrain.data.batch import Arrangement, Batch, arrange
from pretrain.data.config import ranks_per_sequence
from pretrain.data.curriculum import CurriculumStep, StreamName
from pretrain.data.sample_order import Draw, Numbers, Order
from pretrain.data.sample_reader import SampleReader, Samples
from pretrain.data.token_datasets import FoundBatch, TokenDatasets


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
    """Steps to read ahead in a thread, in two blocks; 0 reads each step when it is asked for (train.prefetch)."""
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
class _Share:
    """One step's samples among those of its block, and this rank's part of them."""

    at: CurriculumStep
    first: int
    """Slot of the step's first sample; slots are numbered through all steps that are read together."""
    lengths: list[int]
    """Text tokens of each sample of the step."""
    arrangement: Arrangement
    numbers: tuple[tuple[int, ...], ...]
    """The rank's samples by micro-batch, counted within the step; those beyond the batch are fill."""
    slots: tuple[list[int], ...]
    """Their slots."""
    counts: bool
    """Whether this rank is the first of those that read the same samples."""


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
        self._reader = SampleReader(datasets, self._encode)
        self._pool: ThreadPoolExecutor | None = None
        datasets.hold(order.window)

    def __iter__(self) -> Iterator[StepData]:
        if self.config.prefetch == 0:
            yield from map(self.load, self.steps)
            return
        # To wake a thread costs as much as to read a small step, so steps change hands in blocks, two of them ahead.
        self._pool = pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        size = -(-self.config.prefetch // 2)
        blocks = (self.steps[first : first + size] for first in range(0, len(self.steps), size))
        ahead = deque((block, pool.submit(self.load_block, block)) for block in islice(blocks, 2))
        while ahead:
            block, future = ahead.popleft()
            failed = future.exception() is not None
            ahead.extend((each, pool.submit(self.load_block, each)) for each in islice(blocks, 1))
            # One by one, the error of a block comes at the step that it belongs to.
            yield from map(self.load, block) if failed else future.result()

    def load(self, step: int) -> StepData:
        """Read one step. Raises DataError or OSError when the data cannot be read."""
        return self.load_block(range(step, step + 1))[0]

    def load_block(self, steps: range) -> list[StepData]:
        """Read neighbouring steps: those of one stream are looked up, read and checked together. Raises as `load` does."""
        planned: dict[StreamName, list[CurriculumStep]] = {}
        for step in steps:
            at = self.order.curriculum.at(step)
            planned.setdefault(at.stream, []).append(at)
        items = [item for stream, ats in planned.items() for item in self._load_stream(stream, ats)]
        return sorted(items, key=lambda item: item.curriculum_step.step)

    def _load_stream(self, stream: StreamName, ats: Sequence[CurriculumStep]) -> Iterator[StepData]:
        """Read steps of one stream."""
        drawn = Draw.joined([self.order.draw(at) for at in ats])
        found = self.datasets.find(stream, drawn)
        texts = [self._encode(caption) for caption in found.captions]
        firsts = accumulate((at.mix.batch for at in ats), initial=0)
        shares = [self._share(at, texts[first : first + at.mix.batch], first) for at, first in zip(ats, firsts)]
        read = iter(self._reader.read(stream, drawn, found, [slots for share in shares for slots in share.slots], texts))
        for share in shares:
            yield self._step(share, list(islice(read, len(share.slots))), drawn, found)

    def _share(self, at: CurriculumStep, texts: Sequence[list[int]], first: int) -> _Share:
        """Arrange a step and take this rank's share. texts: of the step's slots. first: the number of its first slot."""
        config = self.config
        # Ranks that share sequences read the same samples; only the first of them counts its tokens.
        together = ranks_per_sequence(at.stage, self.world)
        lengths = list(map(len, texts))
        arrangement = arrange(
            lengths, self._video(at.stream), config.text_length, micro_batch=config.micro_batch,
            world=self.world // together, budget=config.pack_tokens, above=config.pack_above,
        )  # fmt: skip
        numbers = arrangement.micro_batches[self.rank // together]
        count = at.mix.batch
        slots = tuple([first + number % count for number in held] for held in numbers)
        return _Share(at, first, lengths, arrangement, numbers, slots, counts=self.rank % together == 0)

    def _video(self, stream: StreamName) -> int:
        """Return the video tokens of a sample."""
        grid = self.datasets.grid(stream)
        return grid[0] * self.datasets.spec.positions(*grid[1:])

    def _step(self, share: _Share, parts: Sequence[Samples], drawn: Draw, found: FoundBatch) -> StepData:
        """Make the batches of a step of what was read for each."""
        at, count, first = share.at, share.at.mix.batch, share.first
        grid, video = self.datasets.grid(at.stream), self._video(at.stream)
        batches: list[Batch] = []
        replaced: list[tuple[int, str]] = []
        tokens = 0
        for numbers, slots, samples in zip(share.numbers, share.slots, parts, strict=True):
            counted = [i for i, number in enumerate(numbers) if number < count]
            replaced += [(numbers[i], samples.keys[i]) for i in counted if samples.keys[i] != found.keys[slots[i]]]
            tokens += sum([video + len(samples.texts[i]) for i in counted])
            weight = np.zeros(len(slots), dtype=np.float32)
            weight[counted] = 1 / count
            spans = tuple(max(1, share.lengths[slot - first]) for slot in slots) if share.arrangement.row else ()
            batches.append(self._batch(samples, weight, drawn.seeds[slots], grid, share.arrangement, spans))
        return StepData(
            curriculum_step=at,
            batches=tuple(batches),
            ids=tuple(found.keys[first : first + count]),
            replaced=tuple(replaced) if share.counts else (),
            tokens=tokens if share.counts else 0,
            text=sum(share.lengths) / count,
            positions=share.arrangement.positions,
        )

    def _encode(self, caption: str) -> list[int]:
        return self.text.encode(caption)[: self.config.text_length]

    def _batch(
        self,
        samples: Samples,
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
            ids=tuple(samples.keys),
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
