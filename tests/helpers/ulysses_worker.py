"""One rank of the test of sequence parallelism: `python ulysses_worker.py RANK WORLD STORE OUT`. No deepspeed, so it is quick.

Writes for each case the summed loss parts and gradients of the group, as rank 0 sees them, to OUT (safetensors).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta

import torch
from safetensors.torch import save_file
from torch import Tensor

from cluster.runtime.process_group import Ranks, leave
from pretrain.data.batch import Batch
from pretrain.data.config import Mix, Stage
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from pretrain.objective.sequence_parallel import SequenceGroup, SequenceGroups
from tokenizer.quantization.codec_spec import CodecSpec

SPEC = CodecSpec(bits=16, spatial_stride=16, temporal_stride=4, digest="x")
MODEL = ModelConfig(layers=2, width=32, heads=4, text_length=8, max_scales=4)
TEXTS = (5, 3, 0)
CASES = {
    "plain": (0, 0.0, False, torch.float32, 0),
    "window, frame mask, recomputed": (1, 0.4, True, torch.float32, 0),
    "packed": (1, 0.4, False, torch.float32, 203),
    "bfloat16": (0, 0.0, False, torch.bfloat16, 0),
}
"""Window, frame mask, activation checkpointing, type of the weights, tokens of a packed row."""


def batch(row: int) -> Batch:
    """Three samples of 2 frames of 30 tokens; rows of 65 or, packed, 203 tokens do not divide by 2 (nor 65 by 4)."""
    generator = torch.Generator().manual_seed(3)
    size = 2 * SPEC.frame_bytes(4, 4)
    whole = Batch(
        bits=torch.randint(0, 256, (3, size), dtype=torch.uint8, generator=generator),
        text=torch.randint(0, 256, (3, 5), generator=generator),
        text_length=torch.tensor(TEXTS),
        weight=torch.tensor([0.2, 0.5, 0.3]),
        seeds=torch.arange(3) + 7,
        grid=(2, 4, 4),
        ids=("a", "b", "c"),
    )
    return replace(whole, row=row, spans=tuple(max(1, n) for n in TEXTS)) if row else whole


def results(group: SequenceGroup | None) -> dict[str, Tensor]:
    """Loss parts and gradients of every case, of this rank alone."""
    found: dict[str, Tensor] = {}
    for name, (window, frame_mask, recompute, dtype, row) in CASES.items():
        torch.manual_seed(0)
        made = Objective(VideoAR(MODEL, 16, 256), ObjectiveConfig(flip_max=0.3, condition_drop=0.4), SPEC).to(dtype)
        made.model.activation_checkpointing = recompute
        out = made(batch(row), window, frame_mask, group)
        out["loss"].backward()
        found |= {f"{name}/{key}": value.detach().float() for key, value in out.items()}
        for key, parameter in made.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found[f"{name}/grad/{key}"] = gradient.float()
    return found


def main(rank: int, world: int, store: str, out: str) -> int:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    stage = Stage(name="long", steps=1, mix=(Mix(bucket="f005x64x64", batch=3),), sequence_parallel=world)
    ranks = Ranks(rank, world, torch.device("cpu"), ("here",) * world)
    group = SequenceGroups(ranks, (stage,), MODEL.heads, 60.0).of(stage)
    assert group is not None and (group.size, group.index) == (world, rank)
    found = results(group)
    for value in found.values():
        torch.distributed.all_reduce(value)
    if rank == 0:
        save_file(found, out)
    return 0


if __name__ == "__main__":
    leave(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
