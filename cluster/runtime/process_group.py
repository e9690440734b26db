"""The ranks of a training job: how a process joins them, and the collectives that training uses.

All ranks make the same calls in the same order: a rank that leaves one out makes all the others wait for ever.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import Tensor

from cluster.runtime.malloc import keep_freed_memory


@dataclass(frozen=True)
class Ranks:
    """This process among all of the job."""

    rank: int
    world: int
    device: torch.device
    hosts: tuple[str, ...]
    """Host of each rank."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes what is written once a job."""
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

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            torch.distributed.barrier()


def connect(timeout: float, threads: int = 0) -> Ranks:
    """Join the job's ranks (one rank when nothing launched this process) and choose the device.

    timeout: seconds that a collective may wait. threads: torch threads on CPU, 0 divides the cores among the host's ranks.
    """
    # DeepSpeed still calls names that torch 2.13 has replaced, one warning for each collective.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    accelerator = get_accelerator()
    local = int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() == "cpu":
        device = torch.device("cpu")
        # The cores are divided among the ranks of a host: with one thread for each core on every rank all are many times slower.
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // max(1, here)))
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
    """End the process at once with `code`, when all files are closed.

    Threads of torch and gloo may still be inside C++ when the interpreter takes itself down, which then aborts a rank whose
    work is done (seen once in about fifty starts: "terminate called without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def pack_scalars(values: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """Return one float64 vector of scalars and vectors, so that one all-reduce a step carries them all."""
    parts = [value.detach().flatten() if isinstance(value, Tensor) else torch.tensor([value]) for value in values]
    return torch.cat([part.to(device=device, dtype=torch.float64) for part in parts])
