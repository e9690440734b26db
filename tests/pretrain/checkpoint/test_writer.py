"""Checkpoints written in the background: published when whole, dropped when a write fails, pruned by the rule."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.runtime import checkpoint_folders
from cluster.runtime.atomic_files import DiskFull
from cluster.runtime.process_group import Ranks
from pretrain.checkpoint import writer
from pretrain.checkpoint.host_copy import write_torch
from pretrain.checkpoint.train_state import TrainState
from pretrain.checkpoint.writer import Checkpoints
from tests.helpers.made_state import STATE

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"), hosts=("here",))


def whole(run: Path, step: int, *, stage_ends: bool = False) -> Path:
    """A checkpoint folder as two ranks would leave it, published."""
    final = checkpoint_folders.folder_of(run / "checkpoints", step)
    partial = final.with_name(final.name + ".partial")
    (partial / "zero").mkdir(parents=True)
    for rank in range(2):
        path = partial / "zero" / f"rank{rank}.pt"
        _, size, digest = write_torch(path, {"weights": torch.arange(100.0) + rank})
        (partial / f"files-{rank:05d}.json").write_text(json.dumps({f"zero/{path.name}": {"size": size, "sha256": digest}}))
    replace(STATE, step=step, stage_ends=stage_ends).write(partial / "state.json")
    checkpoint_folders.publish(partial, final)
    return final


def test_pruning_keeps_the_newest_and_the_ends_of_stages(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        whole(tmp_path, step, stage_ends=step == 20)
    Checkpoints(tmp_path, ALONE, 2, print).prune()
    assert [path.name[-2:] for path in checkpoint_folders.listed(tmp_path / "checkpoints")] == ["50", "40", "20"]


class FakeDeepSpeed:
    """What a save asks of DeepSpeed's engine."""

    def __init__(self) -> None:
        self.checkpoint_engine: Any = None

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        self._copy_recovery_script(folder)
        self.checkpoint_engine.save({"weights": torch.arange(10.0)}, f"{folder}/{tag}/mp_rank_00_model_states.pt")

    def _copy_recovery_script(self, folder: str) -> None:
        (Path(folder) / "zero_to_fp32.py").write_text("script")


class FakeEngine:
    deepspeed = FakeDeepSpeed()


def test_a_checkpoint_is_published_when_its_files_are_written(tmp_path: Path) -> None:
    said: list[str] = []
    saver = Checkpoints(tmp_path, ALONE, 2, said.append)
    assert saver.flags() == (0.0, 0.0)
    saver.save(FakeEngine(), replace(STATE, step=4, world=1), None, "run: {}\n")  # type: ignore[arg-type]
    saver.finish()
    folder = checkpoint_folders.newest(tmp_path / "checkpoints", said.append)
    assert folder is not None and said == [] and saver.last_saved > 0
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == [
        "DONE", "config.yaml", "latest", "manifest.json", "state.json", "zero/mp_rank_00_model_states.pt", "zero_to_fp32.py",
    ]  # fmt: skip
    assert TrainState.read(folder / "state.json").step == 4


@pytest.mark.parametrize("error", [DiskFull("the disk is full"), OSError("quota")])
def test_a_checkpoint_that_cannot_be_published_is_dropped_and_training_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    said: list[str] = []
    saver = Checkpoints(tmp_path, ALONE, 2, said.append)

    def publish(partial: Path, final: Path) -> None:
        raise error

    monkeypatch.setattr(writer, "publish", publish)
    saver.save(FakeEngine(), replace(STATE, step=4, world=1), None, "")  # type: ignore[arg-type]
    saver.finish()
    assert said == [f"checkpoint of step 4 could not be written ({error}); older checkpoints stay, training continues"]
    assert list((tmp_path / "checkpoints").iterdir()) == [] and saver.last_saved == 0


def test_a_failed_write_is_told_by_rank_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    saver = Checkpoints(tmp_path, ALONE, 2, said.append)
    monkeypatch.setattr(writer, "write_torch", lambda path, value: (shutil.rmtree(path.parent), write_torch(path, value))[1])
    saver.save(FakeEngine(), replace(STATE, step=4, world=1), None, "")  # type: ignore[arg-type]
    saver.finish()
    assert len(said) == 1 and "could not be written (rank 0: " in said[0] and "mp_rank_00_model_states.pt" in said[0]
    assert list((tmp_path / "checkpoints").iterdir()) == []
