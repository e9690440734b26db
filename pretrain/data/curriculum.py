"""What step s of the curriculum is: its stage, its shape, and how many samples of that shape earlier steps took.

In:  the `curriculum` section.
Out: `Curriculum.at(step) -> CurriculumStep`, a pure function; steps count from 1. No torch, no files.

A stream is one shape, taken from one bucket: it has epochs of its own, which continue from stage to stage.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from cluster.config import ConfigError
from pipeline.records import Bucket
from pretrain.data.config import CurriculumConfig, Mix, Stage
from tokenizer.quantization.codec_spec import CodecSpec

CYCLE = 1000
"""A mix repeats after this many steps: shares are exact to 1/1000."""

StreamName = tuple[str, int]
"""Bucket folder, and pixel frames taken of its clips (0 = all)."""


class CurriculumError(ConfigError):
    """A curriculum that cannot run; the message names the key and how to fix it."""


@lru_cache(maxsize=256)
def spread(weights: tuple[float, ...], length: int = CYCLE) -> tuple[int, ...]:
    """Return a pattern of `length` indices into `weights`, in exact shares and each spread as evenly as possible.

    Every index occurs at least once. Raises CurriculumError for more weights than `length`.
    """
    if len(weights) > length:
        raise CurriculumError(f"{len(weights)} parts in one mix; at most {length}")
    total = sum(weights)
    exact = [weight / total * length for weight in weights]
    quota = [max(1, int(share)) for share in exact]
    by_rest = sorted(range(len(weights)), key=lambda i: (quota[i] - exact[i], i))
    for i in range(length - sum(quota)):
        quota[by_rest[i % len(quota)]] += 1
    while sum(quota) > length:
        quota[max((i for i in range(len(quota)) if quota[i] > 1), key=lambda i: quota[i] - exact[i])] -= 1
    credit, chosen = [0] * len(quota), []
    for _ in range(length):
        credit = [have + gain for have, gain in zip(credit, quota)]
        best = max(range(len(quota)), key=lambda i: (credit[i], -i))
        credit[best] -= length
        chosen.append(best)
    return tuple(chosen)


@lru_cache(maxsize=256)
def _pattern(weights: tuple[float, ...]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return the pattern; and for each index, how often it occurs among the pattern's first n entries, n = 0..len(pattern)."""
    pattern = spread(weights)
    return pattern, tuple((0, *accumulate(int(choice == part) for choice in pattern)) for part in range(len(weights)))


def share(weights: Sequence[float], number: int) -> tuple[int, tuple[int, ...]]:
    """Return (the index chosen at position `number`, from 0, of the repeated pattern; how often each index occurs before it)."""
    pattern, counts = _pattern(tuple(weights))
    cycles, rest = divmod(number, len(pattern))
    return pattern[rest], tuple([count[-1] * cycles + count[rest] for count in counts])


@dataclass(frozen=True)
class CurriculumStep:
    """One step of the curriculum."""

    step: int
    """Number of the step, from 1 over the whole curriculum."""
    stage_number: int
    """Number of its stage, from 0."""
    stage: Stage
    stage_step: int
    """Number of the step within its stage, from 0."""
    mix: Mix
    stream: StreamName
    first_sample: int
    """Samples of the stream that earlier steps took."""
    stage_ends: bool
    """Whether this step is the last of its stage."""


def counted(config: CurriculumConfig, spec: CodecSpec) -> CurriculumConfig:
    """Return the same curriculum with every batch in samples and every stage in steps. spec: of the shards' tokenizer."""

    def in_samples(mix: Mix) -> Mix:
        if mix.batch:
            return mix
        batch = max(1, round(mix.batch_tokens / _video_tokens(mix, spec)))
        return mix.model_copy(update={"batch": batch, "batch_tokens": 0.0})

    def in_steps(stage: Stage) -> Stage:
        mix = tuple(map(in_samples, stage.mix))
        if stage.steps:
            return stage.model_copy(update={"mix": mix})
        each = [part.batch * _video_tokens(part, spec) for part in mix]
        weights = [part.weight for part in mix]

        def tokens(steps: int) -> int:
            return sum(count * size for count, size in zip(share(weights, steps)[1], each))

        low, high = 0, math.ceil(stage.tokens / min(each))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if tokens(middle) < stage.tokens else (low, middle)
        return stage.model_copy(update={"mix": mix, "steps": high, "tokens": 0.0})

    return config.model_copy(update={"stages": tuple(map(in_steps, config.stages))})


def _video_tokens(mix: Mix, spec: CodecSpec) -> int:
    bucket = Bucket.parse(mix.bucket)
    latents, rows, columns = spec.grid(mix.frames or bucket.frames, bucket.height, bucket.width)
    return latents * spec.positions(rows, columns)


class Streams:
    """The streams of a curriculum: all that is needed to open its data, before batches are counted in samples."""

    def __init__(self, config: CurriculumConfig) -> None:
        """Raise CurriculumError if there are no stages."""
        if not config.stages:
            raise CurriculumError("curriculum.stages is empty; name at least one stage with steps and a mix")
        self.stages = config.stages

    def streams(self) -> tuple[StreamName, ...]:
        """Return every stream that some stage trains on, in order of first use."""
        return tuple(dict.fromkeys(_stream(mix) for stage in self.stages for mix in stage.mix))


class Curriculum(Streams):
    """Stages laid end to end. config: with batches in samples and stages in steps, as `counted` returns it."""

    def __init__(self, config: CurriculumConfig) -> None:
        super().__init__(config)
        assert all(stage.steps and all(mix.batch for mix in stage.mix) for stage in self.stages)
        self._ends = tuple(accumulate(stage.steps for stage in self.stages))
        self.steps = self._ends[-1]

    def at(self, step: int) -> CurriculumStep:
        """Return step number `step`. Raises CurriculumError for one outside 1..steps."""
        if not 1 <= step <= self.steps:
            raise CurriculumError(f"step {step} is outside the curriculum's 1..{self.steps}")
        number = bisect_right(self._ends, step - 1)
        stage = self.stages[number]
        stage_step = step - 1 - (self._ends[number] - stage.steps)
        choice, _ = share([mix.weight for mix in stage.mix], stage_step)
        mix = stage.mix[choice]
        stream = _stream(mix)
        before = sum(_samples(stream, earlier, earlier.steps) for earlier in self.stages[:number])
        return CurriculumStep(
            step=step,
            stage_number=number,
            stage=stage,
            stage_step=stage_step,
            mix=mix,
            stream=stream,
            first_sample=before + _samples(stream, stage, stage_step),
            stage_ends=stage_step == stage.steps - 1,
        )


def _stream(mix: Mix) -> StreamName:
    return mix.bucket, mix.frames


def _samples(stream: StreamName, stage: Stage, steps: int) -> int:
    """Return how many samples of `stream` the first `steps` steps of a stage take."""
    _, counts = share([mix.weight for mix in stage.mix], steps)
    return sum(count * mix.batch for count, mix in zip(counts, stage.mix) if _stream(mix) == stream)
