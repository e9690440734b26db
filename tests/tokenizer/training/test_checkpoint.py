"""Checkpoints of tokenizer training as files; test_train.py resumes real runs from them, at any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cluster.runtime import checkpoint_folders
from cluster.runtime.process_group import Ranks
from tokenizer.training import checkpoint
from tokenizer.training.checkpoint import TrainState
from tokenizer.training.engine import TrainingError

RANKS = Ranks(rank=0, world=1, device=torch.device("cpu"), hosts=("here",))


def write(root: Path, step: int, log: list[str]) -> None:
    tensors = {"generator": {"weight/a": torch.full((3,), float(step))}, "ema": {}}
    checkpoint.write(root, TrainState(step, "recipe", 1, (0.5, -0.5)), tensors, log.append)


def test_the_newest_two_stay_and_the_newest_undamaged_one_is_found(tmp_path: Path) -> None:
    log: list[str] = []
    assert checkpoint.find(tmp_path / "absent", "recipe", RANKS, log.append) is None
    for step in (2, 4, 6):
        write(tmp_path, step, log)
    assert [path.name for path in checkpoint_folders.listed(tmp_path)] == ["step-00000006", "step-00000004"]
    assert not log
    found = checkpoint.find(tmp_path, "recipe", RANKS, log.append)
    assert found == (tmp_path / "step-00000006", TrainState(6, "recipe", 1, (0.5, -0.5)))
    (tmp_path / "step-00000006" / "ema.safetensors").write_bytes(b"")
    found = checkpoint.find(tmp_path, "recipe", RANKS, log.append)
    assert found is not None and found[1].step == 4
    assert len(log) == 1 and "step-00000006" in log[0] and "ema.safetensors has 0 bytes" in log[0]
    with pytest.raises(TrainingError, match="step-00000004 belongs to another tokenizer recipe"):
        checkpoint.find(tmp_path, "other", RANKS, log.append)


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    write(tmp_path, 2, log)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "generator.safetensors")

    monkeypatch.setattr(checkpoint_folders, "publish", full)
    write(tmp_path, 4, log)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert len(log) == 1 and "checkpoint of step 4 could not be written" in log[0] and "No space left" in log[0]


def test_states_of_earlier_versions_are_read_and_others_named(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"step": 4, "recipe": "r", "ranks": 2, "opinion": [0.25, -1.0]}))
    assert TrainState.read(tmp_path) == TrainState(4, "r", 2, (0.25, -1.0))
    path.write_text("{}")
    with pytest.raises(TrainingError, match="not the state of a checkpoint"):
        TrainState.read(tmp_path)


def test_another_recipe_is_refused_by_key(tmp_path: Path) -> None:
    log: list[str] = []
    old = {"tokenizer": {"bits": 16, "loss": {"l1": 1.0}}, "seed": 0}
    state = TrainState(2, "old", 1, (0.5, -0.5), old)
    checkpoint.write(tmp_path, state, {"generator": {"weight/a": torch.zeros(3)}}, log.append)
    assert checkpoint.find(tmp_path, "old", RANKS, log.append, old) == (tmp_path / "step-00000002", state)
    new = {"tokenizer": {"bits": 16, "loss": {"l1": 2.0}}, "seed": 0}
    with pytest.raises(TrainingError, match=r"another tokenizer recipe \(tokenizer\.loss\.l1: 1\.0 -> 2\.0\)"):
        checkpoint.find(tmp_path, "new", RANKS, log.append, new)


def test_damaged_checkpoints_are_set_aside_and_do_not_count(tmp_path: Path) -> None:
    root, log = tmp_path / "tokenizer-checkpoints", list[str]()
    for step in (2, 4):
        write(root, step, log)
    for folder in checkpoint_folders.listed(root):
        (folder / "generator.safetensors").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"all checkpoints are damaged \(step-00000004: generator\.safetensors has 0 bytes"):
        checkpoint.find(root, "recipe", RANKS, log.append)
    assert not log and len(checkpoint_folders.listed(root)) == 2
    write(root, 6, log)
    assert [path.name for path in checkpoint_folders.listed(root)] == ["step-00000006"] and len(log) == 2
    assert sorted(path.name for path in (tmp_path / "aside" / root.name).iterdir()) == ["step-00000002", "step-00000004"]
