"""Checkpoints written while training continues: copied to host memory, written by threads, published when all ranks are done.

In:  the engine, a TrainState, the EMA.
Out: RUN/checkpoints/step-00001000/:

    state.json config.yaml              our own state and the resolved configuration
    latest zero_to_fp32.py ...          DeepSpeed's own tools work on the folder
    zero/                               DeepSpeed's files
    ema-00000-of-00002.safetensors ...  the slices of the moving average, one file per rank
    manifest.json                       size and sha256 of every file above
    DONE                                sha256 of the manifest, written last; then the folder gets its name

A save begins to copy the tensors and returns. On a CPU they are copied by then; on a GPU a stream of their own copies them behind the
next forward and backward, and `before_update` lets the optimizer, which changes them, wait for that stream. A thread waits for the
copies and writes `step-00001000.partial`, several files at a time, each hashed while it is written. Each step's all-reduce also
carries "my files are written"; once that holds for all ranks, rank 0 publishes the folder and, in a thread, reads it back before any
older one is removed. A failed write (disk full) travels in the same all-reduce: the new folder is dropped, older checkpoints stay,
and training continues; at the end of a job, `prove` says whether its checkpoint lies on the disk.
The run folder must be on a file system that all hosts share.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.runtime import checkpoint_folders
from cluster.runtime.atomic_files import DiskFull, write_text
from cluster.runtime.checkpoint_folders import Keeper, folder_of, partial_of
from cluster.runtime.memory import free_memory
from cluster.runtime.process_group import Ranks
from pretrain.checkpoint.deepspeed_io import TAG, recovery_scripts, state_files
from pretrain.checkpoint.host_buffers import CHUNK, Copies, CudaSideStream, HostBuffers, SideStream
from pretrain.checkpoint.host_copy import copied, on_host, write_slices, write_torch
from pretrain.checkpoint.host_memory import lacks_memory
from pretrain.checkpoint.train_state import ResumeError, TrainState
from pretrain.engine.ema import Ema
from pretrain.engine.engine import Engine

CHECKPOINTS = "checkpoints"
"""Sub-folder of a run."""


class CheckpointMissing(RuntimeError):
    """A job ends, and its last checkpoint is not on the disk; the message says which one is."""


@dataclass
class _Pending:
    """A checkpoint whose files this rank's thread is writing."""

    step: int
    partial: Path
    error: str = ""
    written: bool = False
    thread: threading.Thread = field(default_factory=threading.Thread)


@dataclass
class _Content:
    """What this rank writes."""

    files: list[tuple[Path, Any]]
    slices: dict[str, Tensor] | None
    copies: Copies | None
    """Under way; None: made."""


class Checkpoints:
    """The checkpoints of one run, as one rank sees them. All ranks make the same calls."""

    def __init__(self, run: Path, ranks: Ranks, keep: int, log: Callable[[str], None], side: SideStream | None = None) -> None:
        """side: the stream that copies (default: one of the rank's GPU; none on a CPU)."""
        self.root, self.ranks, self.log = run / CHECKPOINTS, ranks, log
        self.keeper = Keeper(self.root, keep, log, _ends_a_stage)
        self._tender = ThreadPoolExecutor(1, thread_name_prefix="keeper")
        self._tending: Future[None] | None = None
        self._failure = ""
        if side is None and ranks.device.type == "cuda":
            side = CudaSideStream(ranks.device)
        self._side = side
        self.buffers = None if side is None else HostBuffers(side)
        """None on a CPU, which copies at once."""
        self._on_disk = self._prepared = False
        self._pending: _Pending | None = None
        self._copies: Copies | None = None
        self.last_saved = 0.0
        """Unix time at which the newest checkpoint of this process was read back, 0 before the first. Rank 0 only."""

    def prepare(self, engine: Engine, ema: Ema | None) -> None:
        """Begin to allocate host memory, in a thread; only the first call does anything. All ranks call it together.

        Call it after the first optimizer step, before which ZeRO-1 and 2 have no moments.
        """
        if self._side is None or self.buffers is None or self._prepared:
            return
        self._prepared = True
        sizes: list[int] = []

        def count(tensor: Tensor) -> Tensor:
            if self._side is not None and self._side.takes(tensor):
                sizes.append(tensor.nbytes)
            return tensor

        copied([value for _, value in state_files(engine, self.root)], count)
        copied({} if ema is None else ema.slices, count)
        host = self.ranks.hosts[self.ranks.rank]
        lacking = lacks_memory(self.ranks.all_gather((host, sum(sizes), free_memory())))
        for name, (need, free) in lacking.items():
            self.log(
                f"checkpoints: {name} has {free / 1e9:.1f} GB of memory free, {need / 1e9:.1f} are needed to copy them behind training: "
                f"they go through {2 * CHUNK / 1e6:.0f} MB per rank to files in run.dir, and training waits for that"
            )
        self._on_disk = host in lacking
        if not self._on_disk:
            self.buffers.allocate(sizes)

    def save(self, engine: Engine, state: TrainState, ema: Ema | None, config_yaml: str) -> float:
        """Begin a checkpoint; returns the seconds that training stood still. A save still under way is finished first, and said so."""
        began = time.monotonic()
        if self._pending is not None and self._pending.thread.is_alive():
            self.log(
                f"checkpoint of step {state.step}: training waits for the one of step {self._pending.step} to be written; "
                "save less often (train.checkpoint_every), or to a faster disk"
            )
        self.publish()
        self.prepare(engine, ema)
        partial = partial_of(self.root, state.step)
        problem = self.ranks.broadcast(self._make_folder(partial) if self.ranks.first else "")
        if problem:
            self._failed(state.step, problem)
            return time.monotonic() - began
        scripts = recovery_scripts(engine)

        def write_rank_0() -> None:
            (partial / "config.yaml").write_text(config_yaml)
            (partial / "latest").write_text(TAG)
            scripts(str(partial))
            state.write(partial / "state.json")

        self._pending = _Pending(step=state.step, partial=partial)
        states = state_files(engine, partial)
        try:
            content = self._copy(states, {} if ema is None else ema.slices, partial)
        except OSError as error:  # no room for memory on disk: the other ranks are told as of any other failed write
            self._pending.error, self._pending.written = f"rank {self.ranks.rank}: {error}", True
            return time.monotonic() - began
        arguments = (self._pending, content, write_rank_0)
        self._pending.thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._pending.thread.start()
        return time.monotonic() - began

    def _copy(self, states: list[tuple[Path, Any]], slices: dict[str, Tensor], partial: Path) -> _Content:
        """Copy to host memory, or begin to."""
        buffers = self.buffers
        take: Callable[[Tensor], Tensor] = on_host
        if buffers is not None:
            buffers.begin(partial if self._on_disk else None)
            take = buffers.take
        files = [(path, copied(value, take)) for path, value in states]
        average = copied(slices, take) if slices else None
        self._copies = None if buffers is None else buffers.start()
        if buffers is not None and buffers.problem:
            self.log(f"checkpoints: host memory could not be locked, so training waits for the copies ({buffers.problem})")
        return _Content(files, average, self._copies)

    def before_update(self) -> None:
        """Let the optimizer step that is queued next begin after the copies of a save. The host does not wait.

        Call it before anything that changes weights, moments or the moving average.
        """
        if self._copies is not None:
            self._copies.mark.wait()
            self._copies = None

    @staticmethod
    def _make_folder(partial: Path) -> str:
        """Make the folder anew; returns what went wrong, or an empty text."""
        try:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / TAG).mkdir(parents=True)
        except OSError as error:
            return f"{partial}: {error.strerror}"
        return ""

    def _write(self, pending: _Pending, content: _Content, write_rank_0: Callable[[], None]) -> None:
        """Write this rank's files and their digests; runs in a thread."""
        rank, world, partial = self.ranks.rank, self.ranks.world, pending.partial
        pending.error = f"rank {rank}: its thread ended early"
        try:
            if content.copies is not None:
                content.copies.finish()
            (partial / TAG).mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(len(content.files) + 1) as pool:
                writes = [pool.submit(write_torch, path, value) for path, value in content.files]
                if content.slices is not None:
                    path = partial / f"ema-{rank:05d}-of-{world:05d}.safetensors"
                    writes.append(pool.submit(write_slices, path, content.slices))
                if self.ranks.first:
                    write_rank_0()
                done = [each.result() for each in writes]
            plain = {str(path.relative_to(partial)): {"size": size, "sha256": digest} for path, size, digest in done}
            write_text(partial / f"files-{rank:05d}.json", json.dumps(plain))
            pending.error = ""
        except (OSError, RuntimeError) as error:
            pending.error = f"rank {rank}: {error}"
        finally:
            pending.written = True

    def flags(self) -> tuple[float, float]:
        """Return (files are written, a write failed) of this rank, as numbers to be summed over ranks."""
        pending = self._pending
        if pending is None or not pending.written:
            return 0.0, 0.0
        return 1.0, 1.0 if pending.error else 0.0

    def settle(self, files_written: float, write_failed: float) -> None:
        """Publish or drop the pending checkpoint, given the sums of `flags` over all ranks."""
        pending = self._pending
        if pending is None or round(files_written) < self.ranks.world:
            return
        self._pending = None
        if pending.thread.ident is not None:
            pending.thread.join()
        if write_failed > 0:
            errors = [error for error in self.ranks.all_gather(pending.error) if error]
            if self.ranks.first:
                shutil.rmtree(pending.partial, ignore_errors=True)
            self._failed(pending.step, errors[0])
            return
        if self.ranks.first:
            try:
                checkpoint_folders.publish(pending.partial, folder_of(self.root, pending.step))
            except (OSError, DiskFull) as error:
                shutil.rmtree(pending.partial, ignore_errors=True)
                self._failed(pending.step, str(error))
                return
            self._tending = self._tender.submit(self._tend, folder_of(self.root, pending.step).name)

    def _tend(self, name: str) -> None:
        """Read a checkpoint back, and remove old ones; runs in a thread of rank 0, one checkpoint after the other."""
        self.keeper.tend()
        if name in self.keeper.sound:
            self.last_saved = time.time()

    def finish(self) -> None:
        """Wait on all ranks until a checkpoint under way is published or dropped, and all that is there has been read back."""
        self.publish()

        def read_back() -> None:
            if self._tending is not None:
                self._tending.result()
            self.keeper.tend()

        self.ranks.from_first(read_back)

    def publish(self) -> None:
        """Wait on all ranks until a checkpoint under way is published, whole and under its name, or dropped."""
        if self._pending is None:
            return
        if self._pending.thread.ident is not None:
            self._pending.thread.join()
        self.ranks.meet()  # disks are not equally fast
        total = self.ranks.all_reduce(torch.tensor(self.flags(), dtype=torch.float64, device=self.ranks.device))
        self.settle(float(total[0]), float(total[1]))

    def prove(self, step: int) -> Path:
        """Return the checkpoint of `step`, which rank 0 has read back. All ranks call it together. Raises CheckpointMissing."""
        self.finish()
        folder = folder_of(self.root, step)
        if not self.ranks.broadcast(folder.name in self.keeper.sound):
            there = self.ranks.broadcast(max(self.keeper.sound, default="none"))
            raise CheckpointMissing(
                f"step {step} is trained, but its checkpoint is not on the disk ({self._failure or 'damaged'}); the newest checkpoint is "
                f"{there}: mend the disk and run the same command, which continues from there"
            )
        return folder

    def _failed(self, step: int, why: str) -> None:
        self._failure = why
        self.log(f"checkpoint of step {step} could not be written ({why}); older checkpoints stay, training continues")


def _ends_a_stage(folder: Path) -> bool:
    try:
        return TrainState.read(folder / "state.json").stage_ends
    except ResumeError:
        return True  # leave what cannot be judged to a person
