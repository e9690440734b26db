"""The model under DeepSpeed's ZeRO: forward, backward, one optimizer step, and this rank's slices of the weights.

In:  a function that builds the Objective, the `train` and `deepspeed` sections, the ranks.
Out: `Engine`, with the same results at any number of ranks.

The loader fixes the global batch, whatever the number of ranks, so DeepSpeed's own accumulation count is 1 and its accumulation
boundary is set by hand. The loss of a batch is a sum of weight x loss over samples, and the weights add up to 1 over all ranks and
micro-batches; it is therefore multiplied by the number of ranks before backward, where DeepSpeed averages over them.

A step is skipped on all ranks or on none: the decision is made before the last backward, whose loss is then multiplied by NaN, and
a norm of the gradient that is not finite leaves weights and moments untouched. Under ZeRO-3 on a GPU, the host learns of neither
decision (zero3.py): what `step` returns is on the device, and nothing here waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cluster.runtime.process_group import Ranks
from pretrain.data.batch import Batch
from pretrain.engine import optimizer
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.deepspeed_config import deepspeed_config, zero_stage
from pretrain.engine.ema import slice_of
from pretrain.model.layers import Block
from pretrain.objective.sequence_parallel import SequenceGroup


@dataclass(frozen=True)
class Outcome:
    """The result of an optimizer step: scalars on the device, which have not been waited for."""

    applied: Tensor
    """bool"""
    grad_norm: Tensor
    """Before clipping; NaN or infinite if the step was not applied."""


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
        fused: bool | None = None,
    ) -> None:
        """Build the module (under ZeRO-3 it is partitioned during construction) and wrap it. Raises EngineError for bad settings.

        universal: a checkpoint in DeepSpeed's universal format will be loaded. fused: AdamW's fused kernel; None: on a GPU.
        """
        import deepspeed

        self.ranks, self.train = ranks, train
        self.stage = zero_stage(section)
        config = deepspeed_config(train, section, ranks.world, universal=universal)
        self.dtype = torch.float32 if train.dtype == "float32" else torch.bfloat16
        # The same seed on all ranks: the initial weights do not depend on the number of ranks.
        torch.manual_seed(seed)
        if train.deterministic:
            torch.use_deterministic_algorithms(True)
        # No `dtype=` here: on an accelerator without fp16 (a CPU), DeepSpeed 0.19.8 uses bfloat16 whatever it is given, but
        # follows the configuration if it is given none.
        with deepspeed.zero.Init(config_dict_or_path=config) if self.stage == 3 else nullcontext():
            module = build()
        if self.stage == 3:
            # One gather, one release and one reduction for each block: a hook at each of its submodules costs more host time than
            # a GPU takes for the block.
            deepspeed.utils.set_z3_leaf_modules(module, [Block], raise_if_not_found=False)
        named = list(module.named_parameters())
        self.parameters = sum(math.prod(optimizer.shape(parameter)) for _, parameter in named)
        self.shapes = {name: optimizer.shape(parameter) for name, parameter in named}
        if train.optimizer == "muon":
            optimizer.mark_muon(named)
            arguments: dict[str, Any] = {"model_parameters": [p for p in module.parameters() if p.requires_grad]}
        else:
            fused = ranks.device.type == "cuda" if fused is None else fused
            arguments = {"optimizer": optimizer.adamw(module, train, fused=fused)}
        self.deepspeed, *_ = deepspeed.initialize(model=module, config=config, **arguments)
        self.module: nn.Module = self.deepspeed.module
        self.lean = False
        if self.stage == 3:
            from pretrain.engine import zero3

            self.lean = zero3.adopt(self.deepspeed)
            deepspeed.utils.nvtx.enable_nvtx = False  # a thousand ranges a step, for a profiler that is not there
            for part in (module, *(child for child in module.modules() if isinstance(child, Block))):
                keep_parameters(part)

    def forward(
        self, batch: Batch, window: int, frame_mask: float, group: SequenceGroup | None = None, *, last: bool
    ) -> dict[str, Tensor]:
        """Run the Objective on one micro-batch; `last` marks the last one of the step."""
        self.deepspeed.set_gradient_accumulation_boundary(last)
        found: dict[str, Tensor] = self.deepspeed(batch, window, frame_mask, group)
        return found

    @torch.no_grad()
    def evaluate(self, batch: Batch, window: int, group: SequenceGroup | None = None) -> dict[str, Tensor]:
        """Run the Objective in eval mode, without gradients and without a frame mask."""
        self.deepspeed.eval()
        try:
            found: dict[str, Tensor] = self.deepspeed(batch, window, 0.0, group)
        finally:
            self.deepspeed.train()
        return found

    def backward(self, loss: Tensor, *, skip: Tensor | None = None) -> None:
        """Accumulate gradients. `skip` (bool, the same on all ranks, on the last micro-batch) makes `step` change nothing."""
        loss = loss * float(self.ranks.world)
        self.deepspeed.backward(loss if skip is None else loss * torch.ones_like(loss.detach()).masked_fill(skip, math.nan))

    def step(self, learning_rate: float) -> Outcome:
        """Clip and update. Non-finite gradients leave weights and moments untouched, on all ranks."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * (self.train.muon_factor if group.get("use_muon") else 1.0)
        if self.stage == 0:
            norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.train.clip)
            if not math.isfinite(norm):
                self.deepspeed.zero_grad()
                return Outcome(applied=norm.isfinite(), grad_norm=norm)
            self.deepspeed.step()
            return Outcome(applied=norm.isfinite(), grad_norm=norm)
        self.deepspeed.step()
        if self.lean:
            return Outcome(applied=self.deepspeed.optimizer.valid, grad_norm=self.deepspeed.get_global_grad_norm())
        applied = bool(self.deepspeed.was_step_applied())
        norm = torch.as_tensor(self.deepspeed.get_global_grad_norm() if applied else math.nan)
        return Outcome(applied=torch.tensor(applied), grad_norm=norm)

    def slices(self) -> Iterator[tuple[str, Tensor]]:
        """Yield this rank's fp32 slice of each parameter (see ema.py). All ranks must call it together."""
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
        """Return bytes by kind: `resident` of this process; on a GPU also `device` (allocated now) and `peak`."""
        import psutil

        info = psutil.Process().memory_info()
        found = {"resident": int(info.rss)}
        if self.ranks.device.type == "cuda":
            found["device"] = int(torch.cuda.memory_allocated())
            found["peak"] = int(torch.cuda.max_memory_allocated())
        return found


def keep_parameters(module: nn.Module) -> None:
    """Let `module` keep its list of parameters, which never changes, in place of searching all submodules whenever it is asked.

    DeepSpeed asks six times per block and step.
    """
    named = tuple(module.named_parameters())
    search = module.named_parameters

    def kept(prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        return search(prefix, recurse, remove_duplicate) if prefix or not (recurse and remove_duplicate) else iter(named)

    module.named_parameters = kept  # type: ignore[method-assign]
