"""Parameter groups and the optimizer.

In:  the module (whole, or partitioned by ZeRO-3), the `train` section.
Out: torch.optim.AdamW over two groups; no compiled DeepSpeed optimizer is needed at run time.
Called by: engine.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pretrain.engine.config import TrainConfig


def shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the whole shape of a parameter; ZeRO-3 keeps it aside while the parameter itself is partitioned."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: weight decay on matrices only, none on lookup tables, norms, gains and biases.

    Most steps touch few rows of a table; decay would shrink all of them at each step.
    """
    tables = {id(table.weight) for table in module.modules() if isinstance(table, nn.Embedding)}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [p for p in trained if len(shape(p)) >= 2 and id(p) not in tables]
    chosen = {id(p) for p in decayed}
    plain = [p for p in trained if id(p) not in chosen]
    made = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in made if group["params"]]


def adamw(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW as the paper sets it (A4: betas 0.9, 0.95, weight decay 0.05). The learning rate is set each step."""
    return torch.optim.AdamW(groups(module, config.weight_decay), lr=config.learning_rate, betas=config.betas)


def mark_muon(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Mark what DeepSpeed's Muon updates: matrices inside the blocks; embeddings, heads, norms and gains keep Adam."""
    for name, parameter in named:
        inside = any(part in ("blocks", "layers") for part in name.split("."))
        parameter.use_muon = inside and len(shape(parameter)) == 2  # type: ignore[attr-defined]
