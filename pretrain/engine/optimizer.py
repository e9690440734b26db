"""The optimizer: parameter groups, AdamW, which matrices Muon updates, and the learning rate of a step.

In:  the module (whole, or partitioned by ZeRO-3), the `train` section, the curriculum.
Out: torch.optim.AdamW over two groups, so no optimizer of DeepSpeed's has to be compiled; `learning_rate(step, ...)`, a pure
     function: it is set before each optimizer step, so checkpoints hold nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pretrain.data.curriculum import Curriculum
from pretrain.engine.config import TrainConfig

DECAY_SHARE = 0.2
"""Fraction of the steps, at the end, over which `wsd` decays."""


def shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the whole shape of a parameter, also while ZeRO-3 has it partitioned."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: weight decay on matrices only, none on lookup tables, norms, gains and biases.

    Most steps touch only a few rows of a table, but weight decay would shrink all of them in every step.
    """
    tables = {id(table.weight) for table in module.modules() if isinstance(table, nn.Embedding)}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [p for p in trained if len(shape(p)) >= 2 and id(p) not in tables]
    chosen = {id(p) for p in decayed}
    plain = [p for p in trained if id(p) not in chosen]
    made = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in made if group["params"]]


def adamw(module: nn.Module, config: TrainConfig, *, fused: bool = False) -> torch.optim.AdamW:
    """Return AdamW as in the paper (betas 0.9, 0.95, weight decay 0.05). The learning rate is set in each step.

    fused: one kernel that passes over weights, gradients and moments once (a GPU).
    """
    parameters = groups(module, config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=config.betas, fused=fused or None)


def mark_muon(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Mark what DeepSpeed's Muon updates: the matrices inside the blocks. Embeddings, heads, norms and gains keep AdamW."""
    for name, parameter in named:
        inside = any(part in ("blocks", "layers") for part in name.split("."))
        parameter.use_muon = inside and len(shape(parameter)) == 2  # type: ignore[attr-defined]


def learning_rate(step: int, config: TrainConfig, curriculum: Curriculum) -> float:
    """Return the learning rate of `step` (1..steps); a stage's own peak replaces train.learning_rate.

    The warm-up is linear and reaches the peak at step `warmup`. Then cosine (the paper's), constant or WSD over the whole
    curriculum, down to `final_ratio` of the peak.
    """
    peak = curriculum.at(step).stage.learning_rate or config.learning_rate
    return peak * _schedule(step, config, curriculum.steps)


def _schedule(step: int, config: TrainConfig, steps: int) -> float:
    if step <= config.warmup:
        return step / config.warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":
        decay = max(1, round(DECAY_SHARE * steps))
        progress = max(0.0, (step - (steps - decay)) / decay)
        return 1.0 - (1.0 - config.final_ratio) * progress
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.final_ratio + (1.0 - config.final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
