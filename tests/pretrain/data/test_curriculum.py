"""Curriculum and schedule: pure functions of the step."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import CYCLE, Curriculum, CurriculumError, counted, share, spread
from tokenizer.quantization.codec_spec import CodecSpec


def curriculum(*stages: tuple[int, list[tuple[str, int, float, int]]]) -> Curriculum:
    made = tuple(
        Stage(name=f"s{i}", steps=steps, mix=tuple(Mix(bucket=b, frames=f, weight=w, batch=n) for b, f, w, n in mix))
        for i, (steps, mix) in enumerate(stages)
    )
    return Curriculum(CurriculumConfig(stages=made))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
@example([63.0, 0.03125, 0.03125])
def test_spread_keeps_shares_at_every_prefix(weights: list[float]) -> None:
    pattern = spread(tuple(weights))
    assert len(pattern) == CYCLE and set(pattern) == set(range(len(weights)))
    totals = Counter(pattern)
    for part in range(len(weights)):
        exact = weights[part] / sum(weights) * CYCLE
        # Parts rounded up to one choice take theirs from the others.
        assert abs(totals[part] - exact) <= len(weights)
    seen = Counter[int]()
    for number, choice in enumerate(pattern, start=1):
        seen[choice] += 1
        assert all(abs(seen[part] - totals[part] * number / CYCLE) < len(weights) for part in range(len(weights)))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=4), st.integers(0, 3 * CYCLE))
def test_share_counts_what_came_before(weights: list[float], number: int) -> None:
    pattern = spread(tuple(weights))
    choice, before = share(weights, number)
    assert choice == pattern[number % CYCLE]
    wanted = Counter(pattern[i % CYCLE] for i in range(number))
    assert before == tuple(wanted[part] for part in range(len(weights)))


def test_places_and_sample_numbers_follow_on_over_stages() -> None:
    plan = curriculum(
        (7, [("f005x64x64", 0, 2.0, 5), ("f005x64x64", 1, 1.0, 3)]), (4, [("f005x64x64", 0, 1.0, 2), ("f009x64x64", 0, 1.0, 6)])
    )
    given_so_far: Counter[tuple[str, int]] = Counter()
    for step in range(1, plan.steps + 1):
        place = plan.at(step)
        assert place.first_sample == given_so_far[place.stream]
        given_so_far[place.stream] += place.mix.batch
        assert place.stage_number == (0 if step <= 7 else 1)
        assert place.stage_ends == (step in (7, 11))
    assert set(given_so_far) == set(plan.streams())
    for step in (0, 12):
        with pytest.raises(CurriculumError, match=f"step {step} is outside the curriculum's 1..11"):
            plan.at(step)


def test_empty_curriculum_names_the_key() -> None:
    with pytest.raises(CurriculumError, match=r"curriculum\.stages is empty"):
        Curriculum(CurriculumConfig())


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 5]), st.floats(0.1, 5), st.floats(1, 5000)), min_size=1, max_size=3),
    st.floats(1, 1e7),
)
def test_tokens_become_samples_and_steps(parts: list[tuple[int, float, float]], tokens: float) -> None:
    spec = CodecSpec(bits=16, spatial_stride=16, temporal_stride=4, digest="x")
    sizes = {0: 5 * 30, 1: 30, 5: 2 * 30}  # video tokens of 17, 1 and 5 frames of 64 x 64
    mix = tuple(Mix(bucket="f017x64x64", frames=frames, weight=weight, batch_tokens=size) for frames, weight, size in parts)
    config = CurriculumConfig(
        stages=(Stage(name="a", tokens=tokens, mix=mix), Stage(name="b", steps=7, mix=(Mix(bucket="f017x64x64", batch=3),)))
    )
    made = counted(config, spec)
    assert made.stages[1] == config.stages[1] and counted(made, spec) == made
    stage = made.stages[0]
    for part, (frames, _, size) in zip(stage.mix, parts, strict=True):
        assert part.batch == max(1, round(size / sizes[frames])) and not part.batch_tokens

    def seen(steps: int) -> int:
        counts = share([part.weight for part in stage.mix], steps)[1]
        return sum(count * part.batch * sizes[part.frames] for count, part in zip(counts, stage.mix, strict=True))

    assert seen(stage.steps) >= tokens > seen(stage.steps - 1)
    assert Curriculum(made).steps == stage.steps + 7
