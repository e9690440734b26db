"""Every key has a rule; what a run cannot take is refused by key, old and new value, and mend; what it can is said or is silent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster.config.sections import SECTIONS, section_class
from pretrain.checkpoint.resume_rules import IGNORE, RULES, Changes, compare_data, compare_keys, compare_stages, rule_of
from pretrain.checkpoint.train_state import ResumeError
from pretrain.data.config import CurriculumConfig, Mix, Stage
from tests.helpers.made_state import STATE

A, B = "f009x32x32", "f005x64x64"


def keys() -> Iterator[str]:
    """Every key of every section that training reads, and of a stage."""
    for section in SECTIONS:
        if RULES.get(section) != IGNORE:
            yield from (f"{section}.{key}" for key in section_class(section).model_fields)
    yield from (f"curriculum.stages[].{key}" for key in Stage.model_fields)


def test_every_key_has_a_rule_and_every_rule_a_key() -> None:
    missing = [key for key in keys() if rule_of(key) is None]
    assert not missing, f"say in RULES what a change between two starts of a run means: {missing}"
    assert rule_of("train.a_new_key") is None and rule_of("model.a_new_key") is None, "the test can fail"
    stale = [key for key in RULES if key not in {*keys(), *SECTIONS, "deepspeed.zero_optimization.stage"}]
    assert not stale


def plain(**changed: Any) -> dict[str, Any]:
    found = {
        name: section_class(name)().model_dump(mode="json") for name in ("run", "model", "objective", "train", "deepspeed")
    }
    found["curriculum"] = CurriculumConfig().model_dump(mode="json")
    found["train"]["dtype"] = "float32"
    for key, value in changed.items():
        section, _, name = key.partition("__")
        found[section] = {**found[section], name: value}
    return found


def compare(old: dict[str, Any], new: dict[str, Any], *, accept: bool = False) -> list[str]:
    changes = Changes("RUN/checkpoints/step-00000004", accept_new_data=accept)
    compare_keys(old, new, changes)
    return changes.lines


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model__layers", 3, "`model.layers` was 24 in this run and is 3 now; .*set run.dir to a new folder"),
        ("run__seed", 2, "`run.seed` was 0 in this run and is 2 now"),
        ("train__dtype", "bfloat16", "`train.dtype` was float32 in this run and is bfloat16 now; .*set train.dtype=auto"),
        ("train__optimizer", "muon", "`train.optimizer` was adamw"),
        ("train__ema", 0.99, r"`train.ema` was 0.0 in this run and is 0.99 now"),
        (
            "train__shuffle_window",
            4,
            "`train.shuffle_window` was 16 .*come twice and others never: .*train.accept_new_data=true",
        ),
        ("curriculum__weights", [1.0, 2.0], r"`curriculum.weights` was \[\] .*train.accept_new_data=true"),
        ("deepspeed__zero_optimization", {"stage": 2}, "`deepspeed.zero_optimization.stage` was 3 in this run and is 2 now"),
    ],
)
def test_a_change_that_no_run_can_take_is_refused(key: str, value: object, words: str) -> None:
    with pytest.raises(ResumeError, match="RUN/checkpoints/step-00000004: " + words):
        compare(plain(), plain(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model__text_length", 32, "`model.text_length` was 64 in this run and is 32 now: captions are cut there"),
        ("model__compile", True, "`model.compile` was auto in this run and is true now: .*to rounding only"),
        ("model__attention", "dense", "`model.attention` was auto .*to rounding only"),
        ("train__micro_batch", 4, "`train.micro_batch` was 1 in this run and is 4 now: .*to rounding only"),
        ("train__learning_rate", 0.5, "`train.learning_rate` was 0.0001 in this run and is 0.5 now"),
        ("objective__flip_max", 0.5, "`objective.flip_max` was 0.25 .*losses are not comparable"),
        ("deepspeed__zero_optimization", {"stage": 3, "overlap_comm": True}, "overlap_comm` was null .*speed and memory"),
    ],
)
def test_a_change_with_an_effect_is_said(key: str, value: object, words: str) -> None:
    (line,) = compare(plain(), plain(**{key: value}))
    assert re.search(words, line), line


def test_what_has_no_effect_is_silent_and_accepted_orders_are_said() -> None:
    silent = {"train__checkpoint_every": 7, "train__tensorboard": True, "run__name": "x", "train__dtype": "auto"}
    assert compare(plain(), plain(**silent)) == []
    (line,) = compare(plain(), plain(train__shuffle_window=4), accept=True)
    assert "the sample order is the new one from here on" in line
    (line,) = compare(plain(train__ema=0.9), plain(train__ema=0.99))
    assert "moving average" in line


def test_a_key_that_an_older_version_did_not_have_counts_as_its_default() -> None:
    old = plain()
    del old["model"]["qk_norm"], old["objective"]
    assert compare(old, plain()) == []
    with pytest.raises(ResumeError, match=r"`model\.qk_norm` was true in this run and is false now"):
        compare(old, plain(model__qk_norm=False))


def curriculum(*stages: Stage) -> CurriculumConfig:
    return CurriculumConfig(stages=stages)


def stage(name: str, steps: int, batch: int = 2, bucket: str = A, **more: Any) -> Stage:
    return Stage(name=name, steps=steps, mix=(Mix(bucket=bucket, batch=batch),), **more)


def stages(old: CurriculumConfig, new: CurriculumConfig, step: int) -> list[str]:
    changes = Changes("RUN", accept_new_data=False)
    compare_stages(old, new, step, changes)
    return changes.lines


OLD = curriculum(stage("a", 10), stage("b", 10, bucket=B))


def test_what_is_yet_to_come_may_be_added_lengthened_changed_and_removed() -> None:
    assert stages(OLD, OLD, 7) == []
    more = curriculum(*OLD.stages, stage("c", 5))
    (line,) = stages(OLD, more, 7)
    assert line.startswith("`curriculum.stages` was 10 a + 10 b in this run and is 10 a + 10 b + 5 c now")
    assert len(stages(OLD, more, 20)) == 1, "also when all of it was trained"
    assert "10 a + 30 b" in stages(OLD, curriculum(OLD.stages[0], stage("b", 30, bucket=B)), 15)[0]
    assert "is 14 a + 10 b" in stages(OLD, curriculum(stage("a", 14), OLD.stages[1]), 10)[0], "one that has just ended too"
    assert len(stages(OLD, curriculum(OLD.stages[0]), 10)) == 1
    changed = stages(OLD, curriculum(OLD.stages[0], stage("b", 10, bucket=B, batch=4, window=1, learning_rate=1e-3)), 10)
    assert [line.split("`")[1] for line in changed] == [
        "curriculum.stages.1.mix", "curriculum.stages.1.learning_rate", "curriculum.stages.1.window",
    ]  # fmt: skip
    assert stages(OLD, curriculum(stage("renamed", 10, window=1), OLD.stages[1]), 12)[0].startswith("`curriculum.stages`")


@pytest.mark.parametrize(
    ("new", "step", "words"),
    [
        (curriculum(stage("a", 10, batch=3), OLD.stages[1]), 7, r'`curriculum.stages.0.mix` was \["f009x32x32 x 2"\]'),
        (
            curriculum(stage("a", 6), OLD.stages[1]),
            7,
            r"`curriculum.stages.0.steps` was 10 in this run and is 6 now; .*\(7 steps\)",
        ),
        (curriculum(stage("a", 12), OLD.stages[1]), 15, "`curriculum.stages.0.steps` was 10 in this run and is 12 now"),
        (curriculum(OLD.stages[0]), 15, "`curriculum.stages.1` was b in this run and is absent now"),
        (curriculum(OLD.stages[1], OLD.stages[0]), 3, "`curriculum.stages.0.mix`"),
        (curriculum(Stage(name="a", steps=10, mix=(Mix(bucket=A, frames=9, batch=2),)), OLD.stages[1]), 3, "f009x32x32:9 x 2"),
    ],
)
def test_what_is_trained_stays(new: CurriculumConfig, step: int, words: str) -> None:
    with pytest.raises(ResumeError, match=words):
        stages(OLD, new, step)


def test_shards_are_compared_bucket_by_bucket() -> None:
    saved = replace(STATE, contents={A: "1" * 64, B: "2" * 64})

    def data(step: int, *, accept: bool = False, **contents: str) -> list[str]:
        changes = Changes("RUN", accept_new_data=accept)
        now = replace(saved, contents={**saved.contents, **contents}, data_digest="other")
        compare_data(saved, now, step, curriculum(*OLD.stages, stage("c", 5, bucket="f001x32x32")), changes)
        return changes.lines

    assert data(5, f001x32x32="3" * 64) == [], "the bucket of an added stage"
    with pytest.raises(ResumeError, match=rf"`token shards of bucket {A}` was 111111111111 .*accept_new_data=true"):
        data(5, **{A: "9" * 64})
    assert "the sample order is the new one" in data(5, accept=True, **{A: "9" * 64})[0]
    assert data(10, **{A: "9" * 64}) == [], "trained, and not to come again"
    assert "nothing of it is trained" in data(10, **{B: "9" * 64})[0]
    with pytest.raises(ResumeError, match="`token shards and exclusion lists`"):  # a checkpoint of an earlier version
        compare_data(STATE, replace(STATE, data_digest="b"), 4, OLD, Changes("RUN", accept_new_data=False))
