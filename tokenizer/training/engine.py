"""The tokenizer's one door to deepspeed: process group, engines, engine checkpoints.

In:  a module and the training section.
Out: `Engine`, a small face over deepspeed's engine; `start` joins the process group.
Called by: tokenizer/training/train.py.

Parameters stay float32 and the network runs under torch autocast, so ZeRO stages 0 to 3 differ only in what is sharded.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.comm
from deepspeed.ops import __compatible_ops__

from cluster.runtime.malloc import keep_freed_memory
from tokenizer.config import TokenizerTraining


@dataclass(frozen=True)
class World:
    """This process among the ranks."""

    rank: int
    size: int
    device: str

    @property
    def first(self) -> bool:
        """Whether this rank writes files and lines."""
        return self.rank == 0


def start() -> World:
    """Join the process group that the deepspeed launcher describes; without a launcher, one rank."""
    # deepspeed would compile an operator that only inference uses, and fail where no compiler is
    __compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(alone)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    else:
        # The cores are divided among the ranks of a host: every rank with a thread a core is many times slower.
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, here)))
        keep_freed_memory()
    return World(deepspeed.comm.get_rank(), deepspeed.comm.get_world_size(), device)


def stop() -> None:
    """Leave the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    deepspeed.comm.barrier()


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of a tensor over the ranks, NaN-aware: a rank's NaN counts as absent. Same on every rank."""
    stacked = torch.stack((torch.nan_to_num(values), (~values.isnan()).to(values.dtype)))
    deepspeed.comm.all_reduce(stacked)
    return torch.where(stacked[1] > 0, stacked[0] / stacked[1].clamp(min=1), torch.nan)


class Engine:
    """One optimised module. Every rank calls the same methods in the same order."""

    def __init__(self, module: nn.Module, training: TokenizerTraining, world: World) -> None:
        self.stage = training.zero_stage
        parameters: Sequence[nn.Parameter] = list(module.parameters())
        optimizer = torch.optim.AdamW(
            parameters, lr=training.learning_rate, betas=training.betas, weight_decay=training.weight_decay, eps=1e-8
        )
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": training.clip,
            "zero_optimization": {"stage": training.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }
        made: Any = deepspeed.initialize(model=module.to(world.device), optimizer=optimizer, config=config)
        self._engine: Any = made[0]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Forward through deepspeed's engine."""
        return self._engine(*inputs, **named)

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        module: nn.Module = self._engine.module
        return module

    def step(self, loss: Tensor, learning_rate: float, *, last: bool = True) -> float:
        """Backward, and with `last` one optimizer step over what has gathered; returns the gradient norm before clipping.

        The norm is that over all ranks, NaN while more micro-batches follow.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.backward(loss)
        if not last:
            self._engine.step()
            return float("nan")
        norm: Tensor | None = None
        if self.stage == 0:
            # without ZeRO every rank holds the whole averaged gradient, and deepspeed reports no norm
            norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        self._engine.step()
        found = self._engine.get_global_grad_norm() if norm is None else norm
        return float(found) if found is not None else float("nan")

    @contextmanager
    def whole(self) -> Iterator[dict[str, Tensor]]:
        """The full parameters by name (gathered under stage 3), to read."""
        named = dict(self.module.named_parameters())
        if self.stage < 3:
            yield {name: parameter.data for name, parameter in named.items()}
            return
        with deepspeed.zero.GatheredParameters(list(named.values())):
            yield {name: parameter.data for name, parameter in named.items()}

    def save(self, folder: Path) -> None:
        """Write module and optimizer state under `folder`; all ranks."""
        self._engine.save_checkpoint(str(folder), tag="state", save_latest=False)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote at the same number of ranks; all ranks."""
        path, _ = self._engine.load_checkpoint(str(folder), tag="state", load_lr_scheduler_states=False)
        if path is None:
            raise OSError(f"{folder}: no engine state there; remove the checkpoint folder and start again from an older one")
