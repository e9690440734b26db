"""Checkpoints written in the background: published when whole, dropped when a write fails, pruned by the rule."""

from __future__ import annotations

import json
import shutil
import threading
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
from pretrain.checkpoint.writer import CheckpointMissing, Checkpoints
from pretrain.engine.ema import Ema
from tests.helpers.made_state import STATE
from tests.helpers.side_stream import DelayedStream

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
    Checkpoints(tmp_path, ALONE, 2, print).finish()
    assert [path.name[-2:] for path in checkpoint_folders.listed(tmp_path / "checkpoints")] == ["50", "40", "20"]


def test_a_job_that_ends_without_its_checkpoint_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Success is what lies on the disk and was read back: not a write that failed, nor one that the disk did not keep."""
    said: list[str] = []
    saver = Checkpoints(tmp_path, ALONE, 2, said.append)
    saver.save(FakeEngine(), replace(STATE, step=4, world=1), None, "")  # type: ignore[arg-type]
    assert saver.prove(4).name == "step-00000004" and saver.last_saved > 0 and said == []
    saved = saver.last_saved

    publish = checkpoint_folders.publish

    def rotten(partial: Path, final: Path) -> None:
        publish(partial, final)
        (final / "config.yaml").write_text("x")

    monkeypatch.setattr(checkpoint_folders, "publish", rotten)
    saver.save(FakeEngine(), replace(STATE, step=8, world=1), None, "")  # type: ignore[arg-type]
    with pytest.raises(
        CheckpointMissing, match=r"step 8 is trained, .*not on the disk \(damaged\); the newest checkpoint is step-00000004"
    ):
        saver.prove(8)
    assert saver.last_saved == saved and "step-00000008 is damaged: config.yaml has 1 bytes" in said[0]
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("**/step-*"))
    assert names == ["aside/checkpoints/step-00000008", "checkpoints/step-00000004"], "the sound one stays"


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

    monkeypatch.setattr(checkpoint_folders, "publish", publish)
    saver.save(FakeEngine(), replace(STATE, step=4, world=1), None, "")  # type: ignore[arg-type]
    saver.finish()
    assert said == [f"checkpoint of step 4 could not be written ({error}); older checkpoints stay, training continues"]
    assert list((tmp_path / "checkpoints").iterdir()) == [] and saver.last_saved == 0


def test_a_save_that_waits_for_the_one_before_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    told = threading.Event()

    def log(line: str) -> None:
        said.append(line)
        told.set()

    def slow(path: Path, value: Any) -> tuple[Path, int, str]:
        assert told.wait(20), "nothing was said while training waited"
        return write_torch(path, value)

    monkeypatch.setattr(writer, "write_torch", slow)
    saver = Checkpoints(tmp_path, ALONE, 2, log)
    for step in (3, 4):
        saver.save(FakeEngine(), replace(STATE, step=step), None, "x: 1\n")  # type: ignore[arg-type]
    saver.finish()
    assert len(said) == 1
    assert said[0].startswith("checkpoint of step 4: training waits for the one of step 3") and "checkpoint_every" in said[0]
    assert [path.name[-1] for path in checkpoint_folders.listed(tmp_path / "checkpoints")] == ["4", "3"]


def test_a_failed_write_is_told_by_rank_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    saver = Checkpoints(tmp_path, ALONE, 2, said.append)
    monkeypatch.setattr(writer, "write_torch", lambda path, value: (shutil.rmtree(path.parent), write_torch(path, value))[1])
    saver.save(FakeEngine(), replace(STATE, step=4, world=1), None, "")  # type: ignore[arg-type]
    saver.finish()
    assert len(said) == 1 and "could not be written (rank 0: " in said[0] and "mp_rank_00_model_states.pt" in said[0]
    assert list((tmp_path / "checkpoints").iterdir()) == []


class TrainingDeepSpeed(FakeDeepSpeed):
    """Trains a small model, and hands over its own tensors, as DeepSpeed does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Linear(600, 600)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.data = torch.randn(4, 600)

    def forward_backward(self) -> None:
        self.model(self.data).square().mean().backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        self.checkpoint_engine.save({"module": self.model.state_dict()}, f"{folder}/{tag}/model.pt")
        self.checkpoint_engine.save({"optimizer": self.optimizer.state_dict()}, f"{folder}/{tag}/optimizer.pt")


class TrainingEngine:
    """An engine, its moving average, and the loop's order of calls."""

    def __init__(self) -> None:
        self.deepspeed = TrainingDeepSpeed()
        self.ema = Ema(0.5)
        self.ema.start(self._named())

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        return [(name, value.detach().flatten()) for name, value in self.deepspeed.model.named_parameters()]

    def step(self, saver: Checkpoints | None) -> None:
        self.deepspeed.forward_backward()
        if saver is not None:
            saver.before_update()
        self.deepspeed.update()
        self.ema.update(self._named())


def save(saver: Checkpoints, engine: TrainingEngine, step: int) -> None:
    saver.save(engine, replace(STATE, step=step, world=1), engine.ema, "run: {}\n")  # type: ignore[arg-type]


def digests(run: Path, step: int) -> dict[str, str]:
    folder = checkpoint_folders.folder_of(run / "checkpoints", step)
    assert checkpoint_folders.damage(folder) == ""
    found: dict[str, dict[str, str]] = json.loads((folder / "manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in found.items()}


def trained(run: Path, saver: Checkpoints, *, told: bool = True) -> list[int]:
    """Save after steps 1 and 3 of 4; returns the copies that were made before each save returned and before the next update."""
    engine, side = TrainingEngine(), saver._side
    made = []
    for step in (1, 2, 3, 4):
        engine.deepspeed.forward_backward()
        if isinstance(side, DelayedStream):
            made.append(side.copies)
        if told:
            saver.before_update()
        engine.deepspeed.update()
        engine.ema.update(engine._named())
        if not told:
            saver.before_update()
        if step in (1, 3):
            save(saver, engine, step)
        if step == 2:
            saver.finish()
    saver.finish()
    return made


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    """The copies are made as late as they may be: right before the next update."""
    trained(tmp_path / "at once", Checkpoints(tmp_path / "at once", ALONE, 5, print))
    side = DelayedStream()
    made = trained(tmp_path / "late", Checkpoints(tmp_path / "late", ALONE, 5, print, side))
    assert made[0] == made[1] == 0 and made[2] == made[3] == side.copies // 2 > 5
    for step in (1, 3):
        assert digests(tmp_path / "late", step) == digests(tmp_path / "at once", step)
    assert digests(tmp_path / "late", 1) != digests(tmp_path / "late", 3)


def test_an_update_that_does_not_wait_would_be_saved_in_part(tmp_path: Path) -> None:
    """The test above can fail."""
    trained(tmp_path / "at once", Checkpoints(tmp_path / "at once", ALONE, 5, print))
    trained(tmp_path / "late", Checkpoints(tmp_path / "late", ALONE, 5, print, DelayedStream()), told=False)
    assert digests(tmp_path / "late", 1) != digests(tmp_path / "at once", 1)


def test_memory_is_allocated_behind_the_first_steps_and_then_kept(tmp_path: Path) -> None:
    side, engine = DelayedStream(), TrainingEngine()
    saver = Checkpoints(tmp_path, ALONE, 5, print, side)
    engine.step(None)
    for step in (2, 3, 4):
        engine.step(saver)
        saver.prepare(engine, engine.ema)  # type: ignore[arg-type]
        save(saver, engine, step)
        engine.step(saver)
        saver.finish()
        assert side.locks == len(side.locked) > 5
    assert list((tmp_path / "checkpoints").glob("*.partial")) == []


def test_a_host_with_too_little_memory_copies_to_disk_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "at once", Checkpoints(tmp_path / "at once", ALONE, 5, print))
    monkeypatch.setattr(writer, "free_memory", lambda: 1_000_000)
    side, said = DelayedStream(), list[str]()
    trained(tmp_path / "disk", Checkpoints(tmp_path / "disk", ALONE, 5, said.append, side))
    assert len(said) == 1 and said[0].startswith("checkpoints: here has 0.0 GB of memory free") and "134 MB" in said[0]
    assert side.locks == 2 and not side.locked, "two chunks, unlocked when they went"
    for step in (1, 3):
        assert digests(tmp_path / "disk", step) == digests(tmp_path / "at once", step)


def test_a_disk_that_is_too_full_for_that_drops_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, begin: int, size: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr(writer, "free_memory", lambda: 0)
    monkeypatch.setattr("os.posix_fallocate", full)
    said: list[str] = []
    saver, engine = Checkpoints(tmp_path, ALONE, 5, said.append, DelayedStream()), TrainingEngine()
    engine.step(saver)
    save(saver, engine, 1)
    engine.step(saver)
    saver.settle(*saver.flags())
    saver.finish()
    assert said[1:] == [
        "checkpoint of step 1 could not be written (rank 0: no room); older checkpoints stay, training continues"
    ]
    assert list((tmp_path / "checkpoints").iterdir()) == []
