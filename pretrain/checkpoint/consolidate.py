"""Whole weights out of the pieces that ranks wrote: DeepSpeed's partitions and the slices of the moving average.

In:  the contents of a checkpoint's files.
Out: fp32 tensors by parameter name.
Called by: checkpoint.py. Written here, and not taken from DeepSpeed's zero_to_fp32, because that one unpickles freely.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pretrain.engine.ema import join


class WeightsError(RuntimeError):
    """Files that do not hold what their checkpoint says; the message names the folder and the difference."""


def from_zero3(shapes: Mapping[str, Sequence[int]], ranks: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Join ZeRO-3 partitions: every rank holds ceil(n / ranks) elements of each parameter, one after the other.

    ranks: the flat fp32 groups of each rank.
    """
    flat = [torch.cat([group.flatten() for group in groups]) for groups in ranks]
    _check(sum(-(-math.prod(shape) // len(flat)) for shape in shapes.values()), min(part.numel() for part in flat))
    found, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        each = -(-size // len(flat))
        found[name] = torch.cat([part[at : at + each] for part in flat])[:size].view(tuple(shape)).clone()
        at += each
    return found


def from_zero12(
    shapes: Sequence[Mapping[str, Sequence[int]]],
    ranks: Sequence[Sequence[Tensor]],
    paddings: Sequence[Sequence[int]] | None,
) -> dict[str, Tensor]:
    """Join ZeRO-1/2 partitions: a parameter group is one flat vector, cut into as many pieces as there are ranks.

    paddings: elements left free after each parameter, by group.
    """
    found = {}
    for number, group in enumerate(shapes):
        whole, at = torch.cat([rank[number].flatten() for rank in ranks]), 0
        _check(sum(math.prod(shape) for shape in group.values()), whole.numel())
        for index, (name, shape) in enumerate(group.items()):
            size = math.prod(shape)
            found[name] = whole[at : at + size].view(tuple(shape)).clone()
            at += size + (paddings[number][index] if paddings is not None else 0)
    return found


def _check(used: int, held: int) -> None:
    if used > held:
        raise WeightsError(f"the partitions hold {held} elements, the parameters {used}")


def join_partitions(model: Mapping[str, Any], optimizers: Sequence[Mapping[str, Any]], stage: int) -> dict[str, Tensor]:
    """Return all weights from rank 0's model states and every rank's optimizer states, as DeepSpeed 0.19 writes them."""
    states = [item["optimizer_state_dict"] for item in optimizers]
    shapes: Any = model["param_shapes"]
    if stage == 3:
        merged = {name: tuple(shape) for group in shapes for name, shape in group.items()}
        found = from_zero3(merged, [state["fp32_flat_groups"] for state in states])
    else:
        groups = [{name: tuple(shape) for name, shape in group.items()} for group in shapes]
        flat = [state["single_partition_of_fp32_groups"] for state in states]
        found = from_zero12(groups, flat, states[0].get("param_alignment_paddings"))
    found.update({name: model["module"][name].float() for name in model.get("buffer_names", [])})
    return found


def read_ema(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the whole averaged weights of a checkpoint, from the slices of any number of ranks. Raises WeightsError."""
    files = sorted(folder.glob("ema-*-of-*.safetensors"))
    if not files:
        raise WeightsError(f"{folder}: holds no averaged weights (train.ema was 0)")
    parts = []
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            parts.append({name: file.get_tensor(name) for name in shapes})
    return join(parts, shapes)
