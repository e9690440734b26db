"""The door to DeepSpeed: ranks, the ZeRO engine, one forward, one backward, one optimizer step.

In:  a function that builds the Objective, the `train` and `deepspeed` sections.
Out: `connect` (who am I) and `Engine` (forward, backward, step, slices of weights).
Called by: train.py, evaluate.py, checkpoint.py, `videoar bench train`.

The global batch is fixed by the loader at any number of ranks: DeepSpeed's own accumulation count is 1 and its boundary is
set by hand. A batch's loss is a sum over samples of weight x loss whose weights add up to 1 over all ranks and micro-batches,
so it is scaled by the number of ranks before backward, where DeepSpeed averages over them.

A step is skipped on all ranks alike: the verdict is made before the last backward, whose loss is then multiplied by NaN, and
DeepSpeed's own overflow path drops every accumulated gradient without touching weights or moments. Stage 0 has no such path;
there the gradients are complete on each rank and are dropped here.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine import optimizer
from pretrain.data.batch import Batch
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.ema import slice_of
from cluster.runtime.process_group import Ranks
from pretrain.objective.sequence_parallel import SequenceGroup
from cluster.runtime.malloc import keep_freed_memory

OURS = {
    "train_batch_size": "curriculum.stages[].mix[].batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "curriculum.stages[].mix[].batch and train.micro_batch",
    "gradient_clipping": "train.clip",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "bf16": "train.dtype",
    "bfloat16": "train.dtype",
    "fp16": "train.dtype",
    "data_types": "train.dtype",
    "seed": "run.seed",
}
"""DeepSpeed keys that this program sets, and our key for each."""


class EngineError(ValueError):
    """A combination of settings that cannot train; the message names the keys."""


def connect(timeout: float, threads: int = 0) -> Ranks:
    """Join the job's ranks (one rank when nothing launched us) and choose the device.

    timeout: seconds that a collective may wait. threads: torch threads on CPU, 0 divides the cores among the host's ranks.
    """
    # DeepSpeed still calls names that torch 2.13 has replaced, one warning a collective.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
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


def zero_stage(section: DeepSpeedConfig) -> int:
    """Return the ZeRO stage that the `deepspeed` section asks for."""
    return int(section.zero_optimization.get("stage", 0))


def check_compiler(compile: bool, device: torch.device) -> None:
    """Raise EngineError where model.compile=true cannot work: on a CPU, torch.compile needs a C++ compiler (CXX, else g++)."""
    compiler = os.environ.get("CXX", "g++")
    if compile and device.type == "cpu" and shutil.which(compiler) is None:
        raise EngineError(
            f"model.compile=true needs a C++ compiler on a CPU and `{compiler}` is not there: install it, or set model.compile=false"
        )


def deepspeed_config(train: TrainConfig, section: DeepSpeedConfig, world: int, *, universal: bool = False) -> dict[str, Any]:
    """Return the dictionary for DeepSpeed: its own keys from the section, ours from `train`.

    Raises EngineError for a key that this program sets, naming ours, and for combinations that cannot train.
    """
    given = section.model_dump()
    for key, ours in OURS.items():
        if key in given:
            raise EngineError(f"`deepspeed.{key}` contradicts this program's own key: remove it and set {ours}")
    stage = zero_stage(section)
    if stage not in (0, 1, 2, 3):
        raise EngineError(f"`deepspeed.zero_optimization.stage` is {stage}; ZeRO stages are 0, 1, 2 and 3")
    if stage == 0 and train.dtype != "float32":
        raise EngineError(
            "`deepspeed.zero_optimization.stage` 0 trains in float32 only; set train.dtype=float32 or a stage of 1 to 3"
        )
    checkpoint = dict(given.pop("checkpoint", {}))
    for key in ("load_universal", "tag_validation", "writer"):
        if key in checkpoint:
            raise EngineError(f"`deepspeed.checkpoint.{key}` contradicts this program's own checkpoints: remove it")
    checkpoint |= {"load_universal": universal, "tag_validation": "Ignore"}
    zero = dict(given.pop("zero_optimization"))
    if zero.get("offload_optimizer"):
        # Our AdamW is torch's; DeepSpeed's own CPU Adam would be compiled at run time.
        given.setdefault("zero_force_ds_cpu_optimizer", False)
    made: dict[str, Any] = {
        **given,
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Stage 0 clips in `step`. Muon's updates have a norm of their own making: clipping them would undo it.
        "gradient_clipping": 0.0 if stage == 0 or train.optimizer == "muon" else train.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": given.get("steps_per_print", 10**9),
        "checkpoint": checkpoint,
    }
    if train.dtype == "bfloat16":
        made["bf16"] = {"enabled": True}
        made["data_types"] = {"grad_accum_dtype": "fp32"}
    if train.optimizer == "muon":
        if stage == 0:
            raise EngineError("train.optimizer=muon needs deepspeed.zero_optimization.stage 1, 2 or 3")
        zero["reduce_scatter"] = False
        made["optimizer"] = {
            "type": "Muon",
            "params": {"lr": train.learning_rate, "weight_decay": train.weight_decay, "torch_adam": True},
        }
    return made


@dataclass(frozen=True)
class Outcome:
    """What an optimizer step did."""

    applied: bool
    grad_norm: float
    """Before clipping; NaN or infinite when not applied for it."""


class Engine:
    """One rank's part of the model under ZeRO."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        train: TrainConfig,
        section: DeepSpeedConfig,
        ranks: Ranks,
        *,
        seed: int,
        universal: bool = False,
    ) -> None:
        """Build the module (partitioned as it grows under ZeRO-3) and wrap it. Raises EngineError for bad settings."""
        import deepspeed

        self.ranks, self.train = ranks, train
        self.stage = zero_stage(section)
        config = deepspeed_config(train, section, ranks.world, universal=universal)
        self.dtype = torch.bfloat16 if train.dtype == "bfloat16" else torch.float32
        # The same seed on all ranks: initial weights do not depend on their number.
        torch.manual_seed(seed)
        if train.deterministic:
            torch.use_deterministic_algorithms(True)
        # No `dtype=` here: on an accelerator without fp16 (a CPU) DeepSpeed 0.19.8 takes bfloat16 whatever it is given, but it
        # follows the configuration when it is given none.
        with deepspeed.zero.Init(config_dict_or_path=config) if self.stage == 3 else nullcontext():
            module = build()
        named = list(module.named_parameters())
        self.parameters = sum(math.prod(optimizer.shape(parameter)) for _, parameter in named)
        self.shapes = {name: optimizer.shape(parameter) for name, parameter in named}
        if train.optimizer == "muon":
            optimizer.mark_muon(named)
            arguments: dict[str, Any] = {"model_parameters": [p for p in module.parameters() if p.requires_grad]}
        else:
            arguments = {"optimizer": optimizer.adamw(module, train)}
        self.deepspeed, *_ = deepspeed.initialize(model=module, config=config, **arguments)
        self.module: nn.Module = self.deepspeed.module

    def forward(
        self, batch: Batch, window: int, frame_mask: float, group: SequenceGroup | None = None, *, last: bool
    ) -> dict[str, Tensor]:
        """Run the Objective on one micro-batch; `last` ends the accumulation of this step."""
        self.deepspeed.set_gradient_accumulation_boundary(last)
        found: dict[str, Tensor] = self.deepspeed(batch, window, frame_mask, group)
        return found

    @torch.no_grad()
    def evaluate(self, batch: Batch, window: int, group: SequenceGroup | None = None) -> dict[str, Tensor]:
        """Run the Objective without gradients and without a frame mask."""
        self.deepspeed.eval()
        found: dict[str, Tensor] = self.deepspeed(batch, window, 0.0, group)
        self.deepspeed.train()
        return found

    def backward(self, loss: Tensor, *, poison: bool = False) -> None:
        """Accumulate gradients; `poison` (all ranks alike, on the last micro-batch) makes `step` change nothing."""
        factor = math.nan if poison else float(self.ranks.world)
        self.deepspeed.backward(loss * factor)

    def step(self, learning_rate: float) -> Outcome:
        """Clip and update. Gradients that are not finite leave weights and moments untouched, on all ranks."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * (self.train.muon_factor if group.get("use_muon") else 1.0)
        if self.stage == 0:
            norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.train.clip))
            if not math.isfinite(norm):
                self.deepspeed.zero_grad()
                return Outcome(applied=False, grad_norm=norm)
            self.deepspeed.step()
            return Outcome(applied=True, grad_norm=norm)
        self.deepspeed.step()
        applied = bool(self.deepspeed.was_step_applied())
        return Outcome(applied=applied, grad_norm=float(self.deepspeed.get_global_grad_norm()) if applied else math.nan)

    def slices(self) -> Iterator[tuple[str, Tensor]]:
        """Yield this rank's fp32 slice of each parameter (ema.py says which). All ranks call it together."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param

        for name, parameter in self.module.named_parameters():
            size = math.prod(self.shapes[name])
            count = -(-size // self.ranks.world)
            if self.stage == 3:
                local = safe_get_local_fp32_param(parameter)
                yield name, local.flatten()[: max(0, min(count, size - self.ranks.rank * count))]
            elif self.stage == 0 or self.dtype == torch.float32:
                yield name, slice_of(parameter.detach().flatten(), self.ranks.rank, self.ranks.world)
            else:
                full = safe_get_full_fp32_param(parameter)
                yield name, slice_of(full.flatten(), self.ranks.rank, self.ranks.world)

    def memory(self) -> dict[str, int]:
        """Return bytes by kind: resident and peak of this process, device when it is no CPU."""
        import psutil

        info = psutil.Process().memory_info()
        found = {"resident": int(info.rss)}
        if self.ranks.device.type == "cuda":
            found["device"] = int(torch.cuda.memory_allocated())
            found["peak"] = int(torch.cuda.max_memory_allocated())
        return found
