"""DeepSpeed's part of a checkpoint: the state that it would write, its files read back, its universal format.

In:  the engine, or a checkpoint folder whose DeepSpeed files are in the sub-folder `TAG`.
Out: (path, state) pairs, with its own tensors; weights and moments restored into the engine; the content of one file.

DeepSpeed pickles objects of its own beside tensors. Reading admits those classes by name and nothing else, so a checkpoint from
elsewhere runs no code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed.comm
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from pretrain.engine.engine import Engine

TAG = "zero"
"""Sub-folder of a checkpoint that holds DeepSpeed's files."""
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written; the message names the folder and the reason."""


class StateCollector(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's writer interface: `save` keeps what it is given, tensors that training goes on to change; nothing is copied."""

    def __init__(self) -> None:
        super().__init__(None)
        self.taken: list[tuple[Path, Any]] = []

    def create(self, info: CheckpointCommitInfo) -> None:
        """Begin a checkpoint: nothing to do."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make no folder: the files are written later, and perhaps never."""

    def preserves_storage_sharing(self) -> bool:
        """Return False, or DeepSpeed would copy all weights to host memory (ZeRO stages 0 to 2) while training waits."""
        return False

    def save(self, state_dict: Any, path: str) -> None:
        """Keep the state of one file."""
        self.taken.append((Path(path), state_dict))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file."""
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """End a checkpoint: nothing to do."""
        return True


@contextmanager
def replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of `target` inside the block, and set the old ones again however the block ends."""
    before = {name: getattr(target, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def state_files(engine: Engine, folder: Path) -> list[tuple[Path, Any]]:
    """Return what DeepSpeed would write below `folder`, as (path, state) pairs. All ranks call it together.

    The tensors are the engine's own: copy them before the next optimizer step.
    """
    files = StateCollector()
    # DeepSpeed's barriers are about folders and files, of which there are none yet; the host would wait for the device in them.
    quiet = replaced(deepspeed.comm, barrier=lambda *_, **__: None)
    with quiet, replaced(engine.deepspeed, checkpoint_engine=files, _copy_recovery_script=lambda _: None):
        engine.deepspeed.save_checkpoint(str(folder), tag=TAG, save_latest=False)
    return files.taken


def recovery_scripts(engine: Engine) -> Callable[[str], None]:
    """Return the function that copies DeepSpeed's scripts (zero_to_fp32.py and others) into a folder."""
    copy: Callable[[str], None] = engine.deepspeed._copy_recovery_script
    return copy


def restore(engine: Engine, source: Path) -> None:
    """Read weights and moments into the engine, from a checkpoint folder or its universal form. Raises CheckpointError."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in engine.deepspeed.optimizer.param_groups]
    with replaced(engine.deepspeed, checkpoint_engine=StateCollector()):
        path, _ = engine.deepspeed.load_checkpoint(str(source), tag=TAG)
    if path is None:
        raise CheckpointError(f"{source}: DeepSpeed found no checkpoint here")
    # A universal load under ZeRO-3 (DeepSpeed 0.19.8) gives every group the weight decay of the first one, and all parameters
    # one shared step counter, which then advances once per group. And the configuration decides, not the checkpoint.
    for group, kept in zip(engine.deepspeed.optimizer.param_groups, settings):
        group.update(kept)
    inner = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)
    for moments in inner.state.values():
        if isinstance(moments.get("step"), Tensor):
            moments["step"] = moments["step"].clone()


def read_file(path: Path) -> Any:
    """Return the content of one of DeepSpeed's files, on the CPU."""
    return StateCollector().load(str(path), "cpu")


def to_universal(folder: Path, workers: int = 1) -> Path:
    """Convert a checkpoint's DeepSpeed files to the universal format beside it. Raises CheckpointError. Rank 0 only."""
    made = folder.parent / f"universal-{folder.name}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(folder / TAG), "--output_folder", str(made / TAG)]
    command += ["--num_extract_workers", str(workers), "--num_merge_workers", str(workers)]
    # The converter is not a rank: it must not see what the launcher set for this process.
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise CheckpointError(f"{folder}: conversion to the universal format failed ({ended}): {said}")
    return made
