"""Parameter groups, which matrices Muon takes, the learning rate of a step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import Curriculum
from pretrain.engine.config import TrainConfig
from pretrain.engine.optimizer import adamw, groups, learning_rate, mark_muon
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR

MIX = (Mix(bucket="f005x64x64", batch=1),)


def test_weight_decay_takes_matrices_only() -> None:
    model = VideoAR(ModelConfig(layers=2, width=32, heads=2), 16, 256)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in groups(model, 0.05))
    assert len(decayed) + len(plain) == len(names)
    assert "head.weight" in decayed and "blocks.0.attention.qkv.weight" in decayed and "word.weight" in decayed
    assert {"text.weight", "scale.weight", "start.weight", "norm.weight", "head.bias"} <= set(plain)
    assert [group["weight_decay"] for group in adamw(model, TrainConfig(weight_decay=0.2)).param_groups] == [0.2, 0.0]
    mark_muon(model.named_parameters())
    muon = {name for name, parameter in model.named_parameters() if parameter.use_muon}  # type: ignore[attr-defined]
    assert muon == {name for name in decayed if name.startswith("blocks.")}


def test_schedules() -> None:
    curriculum = Curriculum(CurriculumConfig(stages=tuple(Stage(name=f"{n}", steps=n, mix=MIX) for n in (60, 40))))
    cosine = TrainConfig(learning_rate=1.0, warmup=10, final_ratio=0.1)
    rates = [learning_rate(step, cosine, curriculum) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[99] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert rates[54] == pytest.approx(0.55)  # halfway between warm-up and end
    wsd = TrainConfig(learning_rate=1.0, warmup=10, schedule="wsd")
    rates = [learning_rate(step, wsd, curriculum) for step in range(1, 101)]
    assert set(rates[9:80]) == {1.0} and rates[89] == pytest.approx(0.5) and rates[99] == 0.0
    constant = TrainConfig(learning_rate=1.0, warmup=0, schedule="constant")
    assert {learning_rate(step, constant, curriculum) for step in range(1, 101)} == {1.0}


def test_a_stage_has_its_own_peak() -> None:
    stages = tuple(Stage(name=name, steps=5, mix=MIX, learning_rate=rate) for name, rate in (("a", None), ("b", 0.25)))
    curriculum = Curriculum(CurriculumConfig(stages=stages))
    train = TrainConfig(learning_rate=1.0, warmup=0, schedule="constant")
    assert [learning_rate(step, train, curriculum) for step in (5, 6)] == [1.0, 0.25]
