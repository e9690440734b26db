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

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pretrain.engine.ema import Ema, slice_of
from pretrain.engine.engine import Engine
from pretrain.checkpoint.integrity import folder_of, hashed, listed, publish, write_synced
from cluster.runtime.process_group import Ranks
from pretrain.checkpoint.host_copy import copied, write_torch
from pretrain.checkpoint.train_state import ResumeError, TrainState
from pretrain.checkpoint.consolidate import join_partitions, read_ema

TAG = "zero"


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


@dataclass
class _Pending:
    step: int
    partial: Path
    thread: threading.Thread
    error: str = ""
    down: bool = False


class Checkpoints:
    """The checkpoints of one run, as one rank sees them. All ranks make the same calls."""

    def __init__(self, run: Path, ranks: Ranks, keep: int, say: Callable[[str], None]) -> None:
        self.run, self.ranks, self.keep, self.say = run, ranks, keep, say
        self._pending: _Pending | None = None
        self.last_saved = 0.0
        """Unix time of the newest whole checkpoint of this process, 0 before the first."""

    def save(self, engine: Engine, state: TrainState, ema: Ema | None, config_yaml: str) -> float:
        """Begin a checkpoint; returns the seconds for which training stood still. A save still under way is finished first."""
        began = time.monotonic()
        self.finish()
        final = folder_of(self.run, state.step)
        partial = final.with_name(final.name + ".partial")
        problem = ""
        if self.ranks.rank == 0:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                (partial / TAG).mkdir(parents=True)
            except OSError as error:
                problem = f"{partial}: {error.strerror}"
        problem = self.ranks.from_first(problem)
        if problem:
            self._failed(state.step, problem)
            return time.monotonic() - began
        snapshots = _Snapshots()
        ours, engine.deepspeed.checkpoint_engine = engine.deepspeed.checkpoint_engine, snapshots
        scripts = engine.deepspeed._copy_recovery_script
        engine.deepspeed._copy_recovery_script = lambda _: None
        engine.deepspeed.save_checkpoint(str(partial), tag=TAG, save_latest=False)
        engine.deepspeed.checkpoint_engine, engine.deepspeed._copy_recovery_script = ours, scripts
        slices = None if ema is None else {name: value.cpu().clone() for name, value in ema.slices.items()}
        pending = _Pending(step=state.step, partial=partial, thread=threading.Thread(target=lambda: None))
        rank, world = self.ranks.rank, self.ranks.world

        def write() -> None:
            try:
                files = [write_torch(path, value) for path, value in snapshots.taken]
                if slices is not None:
                    path = partial / f"ema-{rank:05d}-of-{world:05d}.safetensors"
                    save_file(slices, path)
                    files.append(hashed(path))
                if rank == 0:
                    (partial / "config.yaml").write_text(config_yaml)
                    (partial / "latest").write_text(TAG)
                    scripts(str(partial))
                    state.write(partial / "state.json")
                write_synced(partial / f"files-{rank:05d}.json", json.dumps(_relative(files, partial)))
            except (OSError, RuntimeError, SafetensorError) as error:
                pending.error = f"rank {rank}: {error}"
            pending.down = True

        pending.thread = threading.Thread(target=write, name="checkpoint")
        pending.thread.start()
        self._pending = pending
        return time.monotonic() - began

    def flags(self) -> tuple[float, float]:
        """Return (files are down, write failed) of this rank, as numbers to be summed over ranks."""
        pending = self._pending
        if pending is None or not pending.down:
            return 0.0, 0.0
        return 1.0, 1.0 if pending.error else 0.0

    def settle(self, down: float, failed: float) -> None:
        """Publish or drop the pending checkpoint, given the sums of `flags` over all ranks."""
        pending = self._pending
        if pending is None or round(down) < self.ranks.world:
            return
        self._pending = None
        pending.thread.join()
        if failed > 0:
            errors = [error for error in self.ranks.gather(pending.error) if error]
            if self.ranks.rank == 0:
                shutil.rmtree(pending.partial, ignore_errors=True)
            self._failed(pending.step, errors[0])
            return
        if self.ranks.rank == 0:
            try:
                publish(pending.partial, folder_of(self.run, pending.step))
            except OSError as error:
                shutil.rmtree(pending.partial, ignore_errors=True)
                self._failed(pending.step, str(error))
                return
            self.prune()
        self.last_saved = time.time()

    def finish(self) -> None:
        """Wait for a checkpoint under way, on all ranks."""
        if self._pending is None:
            return
        self._pending.thread.join()
        down, failed = self.flags()
        total = self.ranks.sum(torch.tensor([down, failed], dtype=torch.float64, device=self.ranks.device))
        self.settle(float(total[0]), float(total[1]))
        self.ranks.barrier()

    def _failed(self, step: int, why: str) -> None:
        self.say(f"checkpoint of step {step} could not be written ({why}); older checkpoints stay, training goes on")

    def prune(self) -> None:
        """Remove what the rule does not keep: the newest `keep` and the last of each stage stay. Rank 0 only."""
        whole = [path for path in listed(self.run) if (path / "DONE").is_file()]
        for path in whole[self.keep :]:
            try:
                kept = TrainState.read(path / "state.json").stage_ends
            except ResumeError:
                kept = True  # what cannot be judged is left for a person
            if not kept:
                # Without DONE first, a kill in the middle of the removal leaves no folder that looks whole.
                (path / "DONE").unlink()
                shutil.rmtree(path)


def _relative(files: list[tuple[Path, int, str]], base: Path) -> dict[str, dict[str, Any]]:
    return {str(path.relative_to(base)): {"size": size, "sha256": digest} for path, size, digest in files}


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
