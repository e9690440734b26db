"""One module under DeepSpeed: forward, backward, optimizer step, and its whole state at any number of ranks.

In:  a module, the training section, the ranks that `cluster.runtime.process_group.connect` has joined.
Out: `ZeroEngine`, a narrow interface to DeepSpeed's engine; this file is the tokenizer's only import of it.

Parameters stay float32 and the network runs under torch autocast, so ZeRO stages 0 to 3 differ only in what is partitioned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.runtime.process_group import Ranks
from tokenizer.config import TokenizerTraining

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names that AdamW gives to its two moments."""


class TrainingError(RuntimeError):
    """Training that cannot continue; the message says what to do."""


class ZeroEngine:
    """A module, its optimizer and its gradients. Every rank makes the same calls in the same order."""

    def __init__(self, module: nn.Module, training: TokenizerTraining, ranks: Ranks) -> None:
        import deepspeed

        self.stage, self.ranks = training.zero_stage, ranks
        optimizer = torch.optim.AdamW(
            list(module.parameters()),
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            eps=1e-8,
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
        self._engine: Any = deepspeed.initialize(model=module.to(ranks.device), optimizer=optimizer, config=config)[0]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the module's forward pass through DeepSpeed."""
        return self._engine(*inputs, **named)

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        module: nn.Module = self._engine.module
        return module

    def step(self, loss: Tensor, learning_rate: float, *, last: bool = True) -> float:
        """Backpropagate; with `last`, also apply the accumulated gradients. Returns the gradient norm before clipping.

        The norm is over all ranks, and NaN while more micro-batches follow.
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
            # Without ZeRO every rank holds the whole averaged gradient, and DeepSpeed reports no norm.
            norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        self._engine.step()
        found = self._engine.get_global_grad_norm() if norm is None else norm
        return float(found) if found is not None else float("nan")

    @contextmanager
    def whole(self) -> Iterator[dict[str, Tensor]]:
        """Give the full parameters by name, gathered under stage 3, for reading."""
        import deepspeed

        named = dict(self.module.named_parameters())
        if self.stage < 3:
            yield {name: parameter.data for name, parameter in named.items()}
            return
        with deepspeed.zero.GatheredParameters(list(named.values())):
            yield {name: parameter.data for name, parameter in named.items()}

    # State that does not depend on the number of ranks ---------------------------------------------------------------------

    def full_state(self) -> dict[str, Tensor]:
        """Return weights, moments and step count, whole and on the CPU. All ranks call this; only the first gets tensors.

        Keys: `weight/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME` and `step`; before the first optimizer step only the weights.
        """
        state: dict[str, Tensor] = {}
        with self.whole() as weights:
            for name, weight in weights.items():
                self._keep(state, f"weight/{name}", weight)
        steps = {int(moments["step"]) for moments in self._adam.state.values()}
        assert len(steps) <= 1, f"all parameters are updated together, but their step counts are {sorted(steps)}"
        if steps:
            self._keep(state, "step", torch.tensor(steps.pop()))
            for name, parameter in self.module.named_parameters():
                for moment in MOMENTS:
                    self._keep(state, f"{moment}/{name}", self._gathered_moment(parameter, moment))
        return state

    def load_full_state(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Take over what `full_state` returned at any number of ranks. Raises TrainingError naming `source`. All ranks call this."""
        named = dict(self.module.named_parameters())
        kinds = ("weight", *MOMENTS) if "step" in state else ("weight",)
        wrong = [f"{kind}/{name}" for kind in kinds for name, p in named.items() if _misfits(state.get(f"{kind}/{name}"), p)]
        if wrong:
            raise TrainingError(f"{source}: `{wrong[0]}` is missing or has another shape than this configuration's network")
        self._set_weights(named, state)
        if "step" not in state:
            return
        for partition in self._partitions():
            zeros = {moment: torch.zeros_like(partition) for moment in MOMENTS}
            self._adam.state[partition] = {"step": state["step"].to("cpu", torch.float32, copy=True), **zeros}
        if self.stage in (1, 2):
            # DeepSpeed links parameters to their moments after the first step; here they must be linked before it.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for moment in MOMENTS:
            for name, parameter in named.items():
                self._set_moment(parameter, moment, state[f"{moment}/{name}"].to(self.ranks.device))

    def load_partitioned(self, folder: Path) -> None:
        """Read DeepSpeed's own files, as checkpoints held them before `full_state`; only at the number of ranks that wrote them."""
        path, _ = self._engine.load_checkpoint(str(folder), tag="state", load_lr_scheduler_states=False)
        if path is None:
            raise TrainingError(f"{folder}: no engine state there; remove this checkpoint to continue from the one before")

    @property
    def _adam(self) -> torch.optim.AdamW:
        """The torch optimizer, inside ZeRO's when there is one."""
        optimizer: torch.optim.AdamW = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        return optimizer

    def _partitions(self) -> list[Tensor]:
        """Return the tensors that the torch optimizer updates on this rank: parameters, or ZeRO's flat partitions of them."""
        if self.stage == 0:
            return list(self.module.parameters())
        zero = self._engine.optimizer
        flat: list[Tensor] = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        return flat

    def _keep(self, state: dict[str, Tensor], name: str, value: Tensor) -> None:
        if self.ranks.first:
            state[name] = value.detach().to("cpu", copy=True).contiguous()

    def _gathered_moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        found: Tensor = (
            self._adam.state[parameter][moment] if self.stage == 0 else safe_get_full_optimizer_state(parameter, moment)
        )
        return found

    def _set_weights(self, named: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self.stage == 3:
            with deepspeed.zero.GatheredParameters(list(named.values()), modifier_rank=0):
                if self.ranks.first:
                    for name, parameter in named.items():
                        parameter.data.copy_(state[f"weight/{name}"])
        for name, parameter in named.items():
            weight = state[f"weight/{name}"].to(self.ranks.device)
            if self.stage == 3:
                safe_set_local_fp32_param(parameter, self._own_part(parameter, weight))
                continue
            parameter.data.copy_(weight)
            safe_set_full_fp32_param(parameter, weight)  # ZeRO's own copy; nothing under stage 0

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.stage == 0:
            self._adam.state[parameter][moment].copy_(value)
        elif self.stage == 3:
            safe_set_local_optimizer_state(parameter, self._own_part(parameter, value), moment)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _own_part(self, parameter: Any, value: Tensor) -> Tensor:
        """Return this rank's part of a parameter under ZeRO-3: equal parts of the flat tensor, the last ones filled with zeros."""
        size = parameter.ds_tensor.numel()
        own = value.flatten()[size * self.ranks.rank : size * (self.ranks.rank + 1)]
        return nn.functional.pad(own, (0, size - own.numel()))


def _misfits(value: Tensor | None, parameter: Any) -> bool:
    return value is None or tuple(value.shape) != tuple(getattr(parameter, "ds_shape", parameter.shape))
