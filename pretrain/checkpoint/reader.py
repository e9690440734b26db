"""Checkpoints of a run: written beside training, whole or not at all, found again, read at any number of ranks.

In:  the engine, a TrainState, EMA slices.
Out: RUN/checkpoints/step-00001000/ and back.
Called by: train.py, export.py, sample and evaluation commands.

    step-00001000/  state.json config.yaml      our own state and the resolved configuration
                    latest zero_to_fp32.py      DeepSpeed's own tools work on the folder
                    zero/ ...                   DeepSpeed's files
                    ema-00000-of-00002.safetensors
                    manifest.json               size and sha256 of every file above
                    DONE                        sha256 of the manifest, written last

A save copies the tensors (that is the stall) and hands them to a thread, which writes `step-00001000.partial`. The loop adds
"my files are down" to the sum it makes over all ranks anyway; when all are, rank 0 writes the manifest, renames the folder
and writes DONE. A failed write (disk full) is agreed in the same sum: the new folder is dropped, older checkpoints stay, and
training goes on. The run folder must be one file system that all hosts see.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from torch import Tensor

from cluster.runtime.process_group import Ranks
from pretrain.checkpoint.consolidate import join_partitions, read_ema
from pretrain.checkpoint.deepspeed_io import TAG
from pretrain.checkpoint.host_copy import copied
from pretrain.checkpoint.train_state import TrainState
from pretrain.engine.ema import Ema, slice_of
from pretrain.engine.engine import Engine


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written; the message names the folder and the reason."""


# Writing ------------------------------------------------------------------------------------------------------------------


class _Snapshots(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's writer interface: `save` copies to host memory and remembers; files are written later, by a thread."""

    def __init__(self) -> None:
        super().__init__(None)
        self.taken: list[tuple[Path, Any]] = []

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def save(self, state_dict: Any, path: str) -> None:
        self.taken.append((Path(path), copied(state_dict)))

    def load(self, path: str, map_location: Any = None) -> Any:
        # DeepSpeed's files hold objects of its own beside tensors; they are allowed by name, nothing else is.
        with torch.serialization.safe_globals(_known_classes()):
            return torch.load(path, map_location=map_location, weights_only=True)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True


def _known_classes() -> list[Any]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


# Reading ------------------------------------------------------------------------------------------------------------------


def needs_universal(state: TrainState, ranks: Ranks) -> bool:
    """Whether DeepSpeed can read the checkpoint only by way of its universal format (another number of ranks)."""
    return state.zero_stage > 0 and state.world != ranks.world


def to_universal(folder: Path, workers: int = 1) -> Path:
    """Convert a checkpoint's DeepSpeed files to the universal format beside it. Raises CheckpointError. Rank 0 only."""
    made = folder.parent / f"universal-{folder.name}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(folder / TAG), "--output_folder", str(made / TAG)]
    command += ["--num_extract_workers", str(workers), "--num_merge_workers", str(workers)]
    # The converter is no rank: what the launcher told this process must not reach it.
    known = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    done = subprocess.run(command, capture_output=True, text=True, env=known, check=False)
    if done.returncode:
        raise CheckpointError(f"{folder}: conversion to the universal format failed: {done.stderr.strip().splitlines()[-1:]}")
    return made


def load(engine: Engine, folder: Path, source: Path, ema: Ema | None) -> None:
    """Read weights, moments and EMA. `source` is `folder`, or what `to_universal` made of it. Raises CheckpointError."""
    ours, engine.deepspeed.checkpoint_engine = engine.deepspeed.checkpoint_engine, _Snapshots()
    settings = [{k: v for k, v in group.items() if k != "params"} for group in engine.deepspeed.optimizer.param_groups]
    path, _ = engine.deepspeed.load_checkpoint(str(source), tag=TAG)
    engine.deepspeed.checkpoint_engine = ours
    if path is None:
        raise CheckpointError(f"{source}: DeepSpeed found no checkpoint")
    # A universal load under ZeRO-3 (DeepSpeed 0.19.8) gives every group the first one's weight decay, and all parameters one
    # shared step counter, which then counts once a group. And whatever the checkpoint says, the configuration decides.
    for group, kept in zip(engine.deepspeed.optimizer.param_groups, settings):
        group.update(kept)
    inner = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)
    for moments in inner.state.values():
        if isinstance(moments.get("step"), Tensor):
            moments["step"] = moments["step"].clone()
    if ema is not None:
        whole = read_ema(folder, engine.shapes)
        rank, world = engine.ranks.rank, engine.ranks.world
        device = engine.ranks.device
        ema.slices = {name: slice_of(value.flatten(), rank, world).to(device).clone() for name, value in whole.items()}
    engine.ranks.barrier()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the whole fp32 weights of a checkpoint by name, from the files of any number of ranks and any ZeRO stage.

    Raises CheckpointError or WeightsError.
    """
    state = TrainState.read(folder / "state.json")
    read, files = _Snapshots().load, folder / TAG
    if state.zero_stage == 0:
        weights: dict[str, Tensor] = read(str(files / "mp_rank_00_model_states.pt"), "cpu")["module"]
        return weights
    models = sorted(files.glob("*mp_rank_00_model_states.pt"), key=_rank_of)
    optimizers = sorted(files.glob("*_optim_states.pt"), key=_rank_of)
    if not models or len(optimizers) != state.world:
        raise CheckpointError(f"{files}: optimizer states of {len(optimizers)} ranks, {state.world} wrote them")
    return join_partitions(read(str(models[0]), "cpu"), [read(str(path), "cpu") for path in optimizers], state.zero_stage)


def _rank_of(path: Path) -> int:
    found = re.search(r"pp_rank_(\d+)_", path.name)
    return int(found.group(1)) if found else 0
