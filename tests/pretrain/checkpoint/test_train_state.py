"""Run files, refusals to resume, agreement of ranks, guard."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.checkpoint.train_state import ResumeError, TrainState, past_digest
from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.loop.guard import Guard, TrainingHalted
from pretrain.model.config import ModelConfig
from pretrain.runs.provenance import RankMismatch, agree
from pretrain.runs.run_files import mark_failed, truncate_metrics, write_status
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
        ({"past": "q"}, r"curriculum\.stages \(steps that are already trained\)"),
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


def test_new_data_may_be_accepted_and_other_world_sizes_go_on(tmp_path: Path) -> None:
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


def test_a_rank_that_differs_is_named() -> None:
    same = {"code": "1", "train.clip": "1.0"}
    agree([same, dict(same)], ["one", "two"])
    with pytest.raises(RankMismatch, match=r"rank 1 on two differs from rank 0 on one: `train\.clip` is 2\.0 there and 1\.0"):
        agree([same, {**same, "train.clip": "2.0"}], ["one", "two"])
    with pytest.raises(RankMismatch, match=r"rank 2 .* `extra` is 1 there and None"):
        agree([same, same, {**same, "extra": "1"}], ["a", "b", "c"])


def test_metrics_are_cut_in_place_after_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert truncate_metrics(path, 3) == 0
    lines = [json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(1, 7)]
    path.write_text("".join(lines) + '{"step": 7, "lo')
    with path.open("a") as writer:
        truncate_metrics(path, 4)
        writer.write('{"step": 5}\n')
    assert path.read_text() == "".join(lines[:4]) + '{"step": 5}\n'
    assert truncate_metrics(path, 5) == 0


def test_status_is_one_json_object(tmp_path: Path) -> None:
    write_status(tmp_path, "running", 1, 2)
    write_status(tmp_path, "stopped", 2, 2, "SIGTERM")
    assert json.loads((tmp_path / "status.json").read_text())["line"] == "SIGTERM"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    mark_failed(tmp_path, "too late: it has stopped")
    write_status(tmp_path, "running", 3, 4)
    mark_failed(tmp_path, "no disk")
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["state"], found["step"], found["line"]) == ("failed", 3, "no disk")


def test_guard_calls_nonfinite_losses_and_spikes() -> None:
    guard = Guard(spike_sigma=6.0, max_skips=10, dump=None)
    for step in range(1, 41):
        loss = 0.7 + 0.01 * math.sin(step)
        assert guard.verdict(loss) == ""
        guard.record(step, loss, 1.0, "", [])
    assert guard.verdict(math.nan) == guard.verdict(math.inf) == "nonfinite_loss"
    assert guard.verdict(0.73) == "" and guard.verdict(0.9) == "loss_spike"
    assert Guard(spike_sigma=0.0, max_skips=10, dump=None).verdict(1e9) == ""
    again = Guard(spike_sigma=6.0, max_skips=10, dump=None)
    again.restore(json.loads(json.dumps(guard.plain())))
    assert again.plain() == guard.plain() and again.verdict(0.9) == "loss_spike"


def test_guard_gives_up_after_skips_in_a_row_and_keeps_the_ids(tmp_path: Path) -> None:
    guard = Guard(spike_sigma=0.0, max_skips=3, dump=tmp_path / "skipped.jsonl")
    for step in (1, 2):
        guard.record(step, math.nan, math.nan, "nonfinite_loss", [f"k{step}"])
    guard.record(3, 0.5, 1.0, "", [])
    for step in (4, 5):
        guard.record(step, math.nan, math.nan, "nonfinite_loss", [f"k{step}"])
        guard.check(step, "nonfinite_loss")
    guard.record(6, 0.5, math.inf, "nonfinite_gradient", ["k6"])
    with pytest.raises(TrainingHalted, match=r"step 6: 3 skipped steps in a row, the last for `nonfinite_gradient`"):
        guard.check(6, "nonfinite_gradient")
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["sample_ids"] for line in lines] == [["k1"], ["k2"], ["k4"], ["k5"], ["k6"]]
    assert lines[0]["loss"] is None and guard.skipped == 5
