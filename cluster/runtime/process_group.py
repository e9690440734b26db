"""The process group of a training job: joining it, and the collectives that training uses.

All ranks must make the same calls in the same order: if one rank omits a call, the others wait for it until the timeout.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import Tensor

from cluster.runtime.errors import FirstRankFailed, exit_code
from cluster.runtime.job_protocol import FAILED, ranks_here
from cluster.runtime.memory import keep_freed_memory
from cluster.runtime.ports import free_port

_MEETINGS = itertools.count()
"""Numbers the calls of `Ranks.from_first` and `Ranks.meet`, which all ranks make alike."""


FAREWELL = 5.0
"""Seconds that rank 0, when it fails, gives the others to learn of it."""


@dataclass(frozen=True)
class Ranks:
    """The place of a process in its job, and the collectives that it takes part in."""

    rank: int
    world: int
    device: torch.device
    hosts: tuple[str, ...]
    """Host name of each rank."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes what is written once per job."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over ranks (in place, on the device)."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Return the element-wise mean over ranks, the same on every rank; a rank's NaN counts as absent, NaN on all stays NaN."""
        present = ~values.isnan()
        stacked = self.all_reduce(torch.stack((torch.nan_to_num(values), present.to(values.dtype))))
        return torch.where(stacked[1] > 0, stacked[0] / stacked[1].clamp(min=1), torch.nan)

    def all_gather(self, value: Any) -> list[Any]:
        """Return every rank's object, in rank order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's object on every rank."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def from_first(self, work: Callable[[], Any]) -> Any:
        """Let rank 0 do `work` and return its result on every rank.

        The others wait outside of any collective, so the work may take longer than a collective may. If it raises on rank 0, the
        other ranks raise FirstRankFailed.
        """
        if self.world == 1:
            return work()
        store, key = _store(), f"videoar/alone/{next(_MEETINGS)}"
        if self.first:
            result, failed = None, True
            try:
                result, failed = work(), False
            finally:
                error = sys.exc_info()[1] if failed else None
                store.set(key, "done" if error is None else str(exit_code(error)))
                if error is not None:  # the store ends with this process: let the others read the code first
                    _poll(lambda: store.add(f"{key}/read", 0) >= self.world - 1, FAREWELL)
            return self.broadcast(result)
        try:
            _poll(lambda: store.check([key]))
            said = store.get(key).decode()
            if said != "done":
                store.add(f"{key}/read", 1)
        except torch.distributed.DistError as error:
            raise FirstRankFailed(FAILED) from error
        if said != "done":
            raise FirstRankFailed(int(said))
        return self.broadcast(None)

    def meet(self) -> None:
        """Wait for all ranks outside of any collective, as long as it takes: for what the ranks finish at different times."""
        if self.world > 1:
            store, key = _store(), f"videoar/meeting/{next(_MEETINGS)}"
            store.add(key, 1)
            _poll(lambda: store.add(key, 0) >= self.world)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            torch.distributed.barrier()


def _store() -> Any:
    """Return the store of the process group, which is where ranks can wait without a collective; torch has no public name for it."""
    return torch.distributed.distributed_c10d._get_default_store()  # type: ignore[no-untyped-call,unused-ignore]  # noqa: SLF001


def _poll(ready: Callable[[], bool], seconds: float = math.inf) -> None:
    pause, end = 0.001, time.monotonic() + seconds
    while not ready() and time.monotonic() < end:
        time.sleep(pause)
        pause = min(0.5, 1.5 * pause)


def connect(timeout: float, threads: int = 0) -> Ranks:
    """Join the job's process group and select this rank's device; a process that no launcher started is a job of one rank.

    timeout: seconds that a collective may wait. threads: torch threads on a CPU; 0 divides the cores among the ranks of a host.
    """
    # DeepSpeed still calls functions that torch 2.13 deprecates: one warning per collective.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    accelerator = get_accelerator()
    local = int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() == "cpu":
        device = torch.device("cpu")
        # Divide the cores among the ranks of a host: with as many threads as cores on every rank, all are many times slower.
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // (ranks_here(os.environ) or 1)))
        keep_freed_memory()
        # Only inference uses the shared-memory op, and building it needs a compiler at run time.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        device = torch.device(accelerator.device_name(), local)
        accelerator.set_device(local)
    deepspeed.init_distributed(
        dist_backend=accelerator.communication_backend_name(),
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=timeout),
        verbose=False,
    )
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    hosts: list[Any] = [None] * world
    torch.distributed.all_gather_object(hosts, socket.gethostname())
    return Ranks(rank=rank, world=world, device=device, hosts=tuple(hosts))


def disconnect() -> None:
    """Leave the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Exit at once with `code`, without the interpreter's shutdown. Close all files before.

    Threads of torch and gloo may still run C++ code while the interpreter shuts down, which then aborts a rank whose work is
    done ("terminate called without an active exception", about once in fifty starts).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
