"""Where a step stands in the curriculum: stage, shape, and how many samples every stream has given before it.

In:  the `curriculum` section.
Out: `Curriculum.at(step) -> Place`, a pure function; steps count from 1.
Called by: order.py, schedule.py, train.py, plan.py. No torch, no files.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from pipeline.records import Bucket
from pretrain.data.config import CurriculumConfig, Mix, Stage
from tokenizer.quantization.codec_spec import CodecSpec

CYCLE = 1000
"""Steps after which a mix repeats: shares are exact to 1/1000."""

StreamName = tuple[str, int]
"""Bucket folder and frames taken of it (0 = all): what has one epoch of its own."""


class CurriculumError(ValueError):
    """A curriculum that cannot be run; the message names the key and the mend."""


@lru_cache(maxsize=256)
def spread(weights: tuple[float, ...], length: int = CYCLE) -> tuple[int, ...]:
    """Return `length` choices (numbers into `weights`) in exact shares, each as evenly spread as can be.

    Every choice comes at least once. Raises CurriculumError for more weights than `length`.
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
def _counts(pattern: tuple[int, ...], parts: int) -> tuple[tuple[int, ...], ...]:
    """Per part, how often it came among the first n choices of the pattern, n = 0..len(pattern)."""
    return tuple((0, *accumulate(int(choice == part) for choice in pattern)) for part in range(parts))


def share(weights: Sequence[float], number: int) -> tuple[int, tuple[int, ...]]:
    """Return (the choice made at `number`, counted from 0; how often each part came before it). Closed form."""
    pattern = spread(tuple(weights))
    cycles, rest = divmod(number, len(pattern))
    counts = _counts(pattern, len(weights))
    return pattern[rest], tuple(count[-1] * cycles + count[rest] for count in counts)


@dataclass(frozen=True)
class Place:
    """A step's place."""

    step: int
    """Counted from 1 over the whole curriculum."""
    stage_number: int
    """From 0."""
    stage: Stage
    stage_step: int
    """Steps of this stage that ended before this one."""
    mix: Mix
    stream: StreamName
    first_sample: int
    """Samples that the stream gave before this step."""
    stage_ends: bool
    """This step is the last of its stage."""


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
    """What a corpus needs to know of a curriculum. Raises CurriculumError when there are no stages."""

    def __init__(self, config: CurriculumConfig) -> None:
        if not config.stages:
            raise CurriculumError("curriculum.stages is empty; name at least one stage with steps and a mix")
        self.stages = config.stages

    def streams(self) -> tuple[StreamName, ...]:
        """Return every stream that some stage takes samples of, in order of first use."""
        return tuple(dict.fromkeys(_stream(mix) for stage in self.stages for mix in stage.mix))


class Curriculum(Streams):
    """Stages laid end to end, with batches in samples and stages in steps (`counted`)."""

    def __init__(self, config: CurriculumConfig) -> None:
        super().__init__(config)
        assert all(stage.steps and all(mix.batch for mix in stage.mix) for stage in self.stages)
        self._ends = tuple(accumulate(stage.steps for stage in self.stages))
        self.steps = self._ends[-1]

    def at(self, step: int) -> Place:
        """Return the place of `step`. Raises CurriculumError for a step outside 1..steps."""
        if not 1 <= step <= self.steps:
            raise CurriculumError(f"step {step} is outside the curriculum's 1..{self.steps}")
        number = bisect_right(self._ends, step - 1)
        stage = self.stages[number]
        stage_step = step - 1 - (self._ends[number] - stage.steps)
        choice, _ = share([mix.weight for mix in stage.mix], stage_step)
        mix = stage.mix[choice]
        stream = _stream(mix)
        before = sum(self._given(stream, earlier, earlier.steps) for earlier in self.stages[:number])
        return Place(
            step=step,
            stage_number=number,
            stage=stage,
            stage_step=stage_step,
            mix=mix,
            stream=stream,
            first_sample=before + self._given(stream, stage, stage_step),
            stage_ends=stage_step == stage.steps - 1,
        )

    @staticmethod
    def _given(stream: StreamName, stage: Stage, steps: int) -> int:
        _, counts = share([mix.weight for mix in stage.mix], steps)
        return sum(count * mix.batch for count, mix in zip(counts, stage.mix) if _stream(mix) == stream)


def _stream(mix: Mix) -> StreamName:
    return mix.bucket, mix.frames
