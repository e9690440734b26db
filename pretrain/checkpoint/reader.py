"""A checkpoint read back: into the engine at any number of ranks, or as whole weights without one.

In:  a checkpoint folder (writer.py shows what is in it).
Out: weights, moments and EMA in place; or fp32 tensors by parameter name, joined from the files of any number of ranks.

The partitions are joined here because DeepSpeed's own zero_to_fp32 unpickles whatever the files hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cluster.runtime.process_group import Ranks
from pretrain.checkpoint import deepspeed_io
from pretrain.checkpoint.deepspeed_io import TAG, CheckpointError
from pretrain.checkpoint.train_state import TrainState
from pretrain.engine.ema import Ema, join, slice_of
from pretrain.engine.engine import Engine


def needs_universal(state: TrainState, ranks: Ranks) -> bool:
    """Whether DeepSpeed can read the checkpoint only through its universal format (it has another number of ranks)."""
    return state.zero_stage > 0 and state.world != ranks.world


def load(engine: Engine, folder: Path, source: Path, ema: Ema | None) -> None:
    """Read weights, moments and EMA. All ranks call it together. Raises CheckpointError.

    source: `folder`, or its universal form (deepspeed_io.to_universal).
    """
    deepspeed_io.restore(engine, source)
    if ema is not None:
        whole = read_ema(folder, engine.shapes)
        rank, world, device = engine.ranks.rank, engine.ranks.world, engine.ranks.device
        slices = {name: slice_of(value.flatten(), rank, world).to(device).clone() for name, value in whole.items()}
        state = TrainState.read(folder / "state.json")
        ema.resume(slices, state.step, state.ema_start)
    engine.ranks.barrier()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the whole fp32 weights of a checkpoint by name, whatever the ranks and the ZeRO stage. Raises CheckpointError."""
    state, files = TrainState.read(folder / "state.json"), folder / TAG
    if state.zero_stage == 0:
        weights: dict[str, Tensor] = deepspeed_io.read_file(files / "mp_rank_00_model_states.pt")["module"]
        return weights
    models = sorted(files.glob("*mp_rank_00_model_states.pt"), key=_rank_of)
    optimizers = sorted(files.glob("*_optim_states.pt"), key=_rank_of)
    if not models or len(optimizers) != state.world:
        raise CheckpointError(
            f"{files}: optimizer states of {len(optimizers)} ranks, but {state.world} ranks wrote the checkpoint"
        )
    states = [deepspeed_io.read_file(path) for path in optimizers]
    return join_partitions(deepspeed_io.read_file(models[0]), states, state.zero_stage)


def _rank_of(path: Path) -> int:
    found = re.search(r"pp_rank_(\d+)_", path.name)
    return int(found.group(1)) if found else 0


def from_zero3(shapes: Mapping[str, Sequence[int]], ranks: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Join ZeRO-3 partitions: every rank holds ceil(n / ranks) elements of each parameter, in the order of the parameters.

    ranks: the flat fp32 groups of each rank. Raises CheckpointError.
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

    paddings: unused elements after each parameter, by group. Raises CheckpointError.
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
        raise CheckpointError(f"the partitions hold {held} elements, the parameters need {used}")


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
    """Return the whole EMA weights of a checkpoint, from the slices of any number of ranks. Raises CheckpointError."""
    files = sorted(folder.glob("ema-*-of-*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: holds no EMA weights (train.ema was 0)")
    parts = []
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                parts.append({name: file.get_tensor(name) for name in shapes})
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not the slices of a moving average ({error})") from error
    return join(parts, shapes)
