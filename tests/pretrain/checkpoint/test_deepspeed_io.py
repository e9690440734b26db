"""DeepSpeed's own attributes come back however a save or a load ends, and its files are read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed.comm
import pytest
import torch

from pretrain.checkpoint import deepspeed_io
from pretrain.checkpoint.deepspeed_io import CheckpointError, StateCollector, read_file, restore, state_files


class FakeDeepSpeed:
    """Fails in the middle of a save or a load, or finds nothing."""

    def __init__(self, error: Exception | None = None) -> None:
        self.checkpoint_engine: Any = "its own"
        self.error = error
        self.optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        self._copy_recovery_script(folder)
        assert isinstance(self.checkpoint_engine, StateCollector)
        deepspeed.comm.barrier()  # without a process group, the real one would raise
        self.checkpoint_engine.save({"step": 1}, f"{folder}/{tag}/a.pt")
        if self.error is not None:
            raise self.error

    def load_checkpoint(self, folder: str, tag: str) -> tuple[None, None]:
        assert isinstance(self.checkpoint_engine, StateCollector)
        if self.error is not None:
            raise self.error
        return None, None

    def _copy_recovery_script(self, folder: str) -> None:
        (Path(folder) / "zero_to_fp32.py").write_text("script")


class FakeEngine:
    def __init__(self, error: Exception | None = None) -> None:
        self.deepspeed = FakeDeepSpeed(error)


@pytest.mark.parametrize("error", [None, MemoryError("no host memory"), RuntimeError("a collective failed")])
def test_attributes_come_back_however_a_save_ends(tmp_path: Path, error: Exception | None) -> None:
    engine, barrier = FakeEngine(error), deepspeed.comm.barrier
    if error is None:
        assert state_files(engine, tmp_path) == [(tmp_path / "zero" / "a.pt", {"step": 1})]  # type: ignore[arg-type]
    else:
        with pytest.raises(type(error)):
            state_files(engine, tmp_path)  # type: ignore[arg-type]
    assert engine.deepspeed.checkpoint_engine == "its own" and deepspeed.comm.barrier is barrier
    assert list(tmp_path.iterdir()) == [], "the scripts are copied by the thread, not while training stands still"
    deepspeed_io.recovery_scripts(engine)(str(tmp_path))  # type: ignore[arg-type]
    assert (tmp_path / "zero_to_fp32.py").is_file()


def test_attributes_come_back_however_a_load_ends(tmp_path: Path) -> None:
    for error, kind in ((None, CheckpointError), (MemoryError("no host memory"), MemoryError)):
        engine = FakeEngine(error)
        with pytest.raises(kind):
            restore(engine, tmp_path)  # type: ignore[arg-type]
        assert engine.deepspeed.checkpoint_engine == "its own"


def test_files_with_other_classes_are_not_read(tmp_path: Path) -> None:
    from deepspeed.runtime.zero.config import ZeroStageEnum

    torch.save({"stage": ZeroStageEnum.weights}, tmp_path / "known.pt")
    assert read_file(tmp_path / "known.pt") == {"stage": ZeroStageEnum.weights}
    torch.save({"path": Path("x")}, tmp_path / "other.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        read_file(tmp_path / "other.pt")


def test_nothing_is_copied_and_no_folder_is_made(tmp_path: Path) -> None:
    collector, weights = StateCollector(), torch.zeros(3)
    collector.makedirs(str(tmp_path / "zero"))
    collector.save({"weights": weights}, str(tmp_path / "zero" / "a.pt"))
    assert list(tmp_path.iterdir()) == [] and collector.taken[0][1]["weights"] is weights
    assert not collector.preserves_storage_sharing(), "DeepSpeed would clone all weights to the CPU first"
