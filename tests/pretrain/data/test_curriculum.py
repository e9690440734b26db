"""Curriculum and schedule: pure functions of the step."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import CYCLE, Curriculum, CurriculumError, counted, share, spread
from pretrain.engine.config import TrainConfig
from pretrain.engine.lr_schedule import learning_rate
from pretrain.objective.config import ObjectiveConfig
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


def test_schedules() -> None:
    plan = curriculum((60, [("f005x64x64", 0, 1.0, 1)]), (40, [("f005x64x64", 0, 1.0, 1)]))
    cosine = TrainConfig(learning_rate=1.0, warmup=10, final_ratio=0.1)
    rates = [learning_rate(step, cosine, plan) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[99] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert rates[54] == pytest.approx(0.55)  # half way between warm-up and end
    wsd = TrainConfig(learning_rate=1.0, warmup=10, schedule="wsd")
    rates = [learning_rate(step, wsd, plan) for step in range(1, 101)]
    assert set(rates[9:80]) == {1.0} and rates[89] == pytest.approx(0.5) and rates[99] == 0.0
    constant = TrainConfig(learning_rate=1.0, warmup=0, schedule="constant")
    assert {learning_rate(step, constant, plan) for step in range(1, 101)} == {1.0}


def test_a_stage_has_its_own_peak() -> None:
    stages = tuple(
        Stage(name=name, steps=5, mix=(Mix(bucket="f005x64x64", batch=1),), learning_rate=rate)
        for name, rate in (("a", None), ("b", 0.25))
    )
    plan = Curriculum(CurriculumConfig(stages=stages))
    train = TrainConfig(learning_rate=1.0, warmup=0, schedule="constant")
    assert [learning_rate(step, train, plan) for step in (5, 6)] == [1.0, 0.25]


def test_a_stage_sets_its_own_window_mask_and_corruption() -> None:
    base = ObjectiveConfig(window=8, flip_max=0.25, condition_drop=0.2)
    mix = (Mix(bucket="f005x64x64", batch=2),)
    assert Stage(name="a", steps=1, mix=mix).objective(base) == base
    own = Stage(name="b", steps=1, mix=mix, window=0, frame_mask=0.3, flip_max=0.0, flip_delta=0.0).objective(base)
    assert own == base.model_copy(update={"window": 0, "frame_mask": 0.3, "flip_max": 0.0, "flip_delta": 0.0})


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


def test_steps_or_tokens_and_batch_or_batch_tokens() -> None:
    mix = (Mix(bucket="f005x64x64", batch=2),)
    for wrong in ({}, {"steps": 3, "tokens": 5.0}):
        with pytest.raises(ValueError, match="stage a: give either steps or tokens"):
            Stage(name="a", mix=mix, **wrong)  # type: ignore[arg-type]
    for wrong in ({}, {"batch": 3, "batch_tokens": 5.0}):
        with pytest.raises(ValueError, match=r"either batch \(samples\) or batch_tokens"):
            Mix(bucket="f005x64x64", **wrong)  # type: ignore[arg-type]
