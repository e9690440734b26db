"""DOC from pretrain/checkpoint/reader.py."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cluster.runtime.atomic_files import DiskFull, write_text
from cluster.runtime.checkpoint_folders import folder_of, hashed, listed, publish
from cluster.runtime.process_group import Ranks
from pretrain.checkpoint.deepspeed_io import TAG
from pretrain.checkpoint.host_copy import write_torch
from pretrain.checkpoint.reader import _Snapshots
from pretrain.checkpoint.train_state import ResumeError, TrainState
from pretrain.engine.ema import Ema
from pretrain.engine.engine import Engine

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them."""


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
        final = folder_of(self.run / CHECKPOINTS, state.step)
        partial = final.with_name(final.name + ".partial")
        problem = ""
        if self.ranks.rank == 0:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                (partial / TAG).mkdir(parents=True)
            except OSError as error:
                problem = f"{partial}: {error.strerror}"
        problem = self.ranks.broadcast(problem)
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
                write_text(partial / f"files-{rank:05d}.json", json.dumps(_relative(files, partial)))
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
            errors = [error for error in self.ranks.all_gather(pending.error) if error]
            if self.ranks.rank == 0:
                shutil.rmtree(pending.partial, ignore_errors=True)
            self._failed(pending.step, errors[0])
            return
        if self.ranks.rank == 0:
            try:
                publish(pending.partial, folder_of(self.run / CHECKPOINTS, pending.step))
            except (OSError, DiskFull) as error:
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
        total = self.ranks.all_reduce(torch.tensor([down, failed], dtype=torch.float64, device=self.ranks.device))
        self.settle(float(total[0]), float(total[1]))
        self.ranks.barrier()

    def _failed(self, step: int, why: str) -> None:
        self.say(f"checkpoint of step {step} could not be written ({why}); older checkpoints stay, training goes on")

    def prune(self) -> None:
        """Remove what the rule does not keep: the newest `keep` and the last of each stage stay. Rank 0 only."""
        whole = [path for path in listed(self.run / CHECKPOINTS) if (path / "DONE").is_file()]
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
