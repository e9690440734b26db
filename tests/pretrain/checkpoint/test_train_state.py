"""Training states: written and read, and resumes that would not continue a run refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import ConfigError
from pretrain.checkpoint.train_state import ResumeError, TrainState, past_digest
from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.model.config import ModelConfig
from tests.helpers.made_state import STATE


def test_state_round_trips_and_refuses_another_format(tmp_path: Path) -> None:
    state = replace(STATE, guard={"losses": [0.1, 1 / 3]})
    state.write(tmp_path / "state.json")
    assert TrainState.read(tmp_path / "state.json") == state
    (tmp_path / "state.json").write_text('{"step": 1}')
    with pytest.raises(ResumeError, match=r"state\.json: no readable training state"):
        TrainState.read(tmp_path / "state.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"layers": 3, "width": 64}}, r"`model\.layers` was 2 in this run and is 3 now"),
        ({"seed": 2}, r"`run\.seed` was 1 in this run and is 2 now"),
        ({"zero_stage": 2}, r"`deepspeed\.zero_optimization\.stage` was 3"),
        ({"tokenizer": {"digest": "e" * 64}}, "tokenizer digest of the shards"),
        ({"past": "q"}, r"curriculum\.stages \(steps already trained\)"),
        ({"data_digest": "b" * 64}, r"train\.accept_new_data=true"),
        ({"has_ema": True}, r"train\.ema > 0"),
    ],
)
def test_a_resume_that_would_not_continue_is_refused(change: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=words):
        STATE.check(replace(STATE, **change), accept_new_data=False, folder=tmp_path)  # type: ignore[arg-type]


def test_a_key_that_a_newer_version_added_is_no_change_while_it_holds_its_default(tmp_path: Path) -> None:
    key, value = "qk_norm", ModelConfig().qk_norm
    STATE.check(replace(STATE, model={**STATE.model, key: value}), accept_new_data=False, folder=tmp_path)
    with pytest.raises(ResumeError, match=rf"`model\.{key}` was {value} in this run and is {not value} now"):
        STATE.check(replace(STATE, model={**STATE.model, key: not value}), accept_new_data=False, folder=tmp_path)


def test_a_run_under_a_former_default_continues_under_today_s_and_no_other_value(tmp_path: Path) -> None:
    old = replace(STATE, model={**STATE.model, "compile": False})
    old.check(replace(STATE, model={**STATE.model, "compile": ModelConfig().compile}), accept_new_data=False, folder=tmp_path)
    with pytest.raises(ResumeError, match=r"`model\.compile` was False in this run and is True now"):
        old.check(replace(STATE, model={**STATE.model, "compile": True}), accept_new_data=False, folder=tmp_path)


def test_new_data_may_be_accepted_and_other_world_sizes_continue(tmp_path: Path) -> None:
    now = replace(STATE, data_digest="b" * 64, world=3)
    (note,) = STATE.check(now, accept_new_data=True, folder=tmp_path)
    assert "from step 5 on" in note
    assert STATE.check(replace(STATE, world=3), accept_new_data=False, folder=tmp_path) == []


def test_past_digest_covers_what_is_trained_and_nothing_after() -> None:
    def config(first: int, second: int, batch: int = 2) -> CurriculumConfig:
        mix = (Mix(bucket="f005x64x64", batch=batch),)
        stages = (Stage(name="a", steps=first, mix=mix), Stage(name="b", steps=second, mix=mix))
        return CurriculumConfig(stages=stages)

    assert past_digest(config(5, 5), 7) == past_digest(config(5, 9), 7)
    assert past_digest(config(5, 5), 7) != past_digest(config(6, 5), 7)
    assert past_digest(config(5, 5), 7) != past_digest(config(5, 5, batch=3), 7)


def test_a_refusal_is_an_error_of_the_configuration() -> None:
    assert issubclass(ResumeError, ConfigError)
