"""Peak memory of one training step at 23,652 tokens (33 frames of 384x672), measured on a thin model, planned for recipe L.

    python benchmarks/memory_model.py [--width 128] [--layers 2] [--policy none|selective|full] [--compile]

The thin model runs forward and backward in bfloat16 at the full length. Prints the most bytes that PyTorch's allocator had out at
once (its own count, taken from the profiler) beside `pretrain.estimate.memory.peak_bytes`, the rise of the process's resident
bytes, the largest tensor that any operation made (the mask, were it dense, would have tokens x tokens elements), and the planned
bytes of recipe L. The last line is one JSON object. Exit code 1 when the plan is off by more than 15 %, or for an L x L tensor.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import psutil
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.config import load
from pretrain.data.batch import Batch
from pretrain.estimate.memory import Checkpointing, peak_bytes
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from tokenizer.quantization.codec_spec import CodecSpec

GRID, BITS = (9, 24, 42), 48


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned (storage, not views)."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.name = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, torch.Tensor):
                held = item.untyped_storage().nbytes() // max(1, item.element_size())
                if held > self.elements:
                    self.elements, self.name = held, str(func)
        return out


@dataclass(frozen=True)
class Measured:
    tokens: int
    peak: int
    """Most bytes that the allocator had out at once, over what it had before the step."""
    resident: int
    """Rise of the process's most resident bytes."""
    planned: float
    seconds: float

    @property
    def share(self) -> float:
        return self.peak / self.planned


def allocated(profiler: Any) -> int:
    """Most bytes out at once while `profiler` (a finished torch profile with profile_memory) ran."""
    changes: list[tuple[int, int, int]] = []
    events = list(profiler.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
        events.extend(event.children)
    held: dict[int, int] = {}
    now = most = 0
    for _, pointer, size in sorted(changes, key=lambda change: change[0]):
        if size > 0:
            held[pointer] = size
            now += size
        else:
            now -= held.pop(pointer, 0)  # what was there before the step counts neither way
        most = max(most, now)
    return most


def thin(width: int, layers: int, policy: Checkpointing, compile: bool = False) -> Objective:
    config = ModelConfig(layers=layers, width=width, heads=width // 64, compile=compile)
    model = VideoAR(config, BITS, 256).to(torch.bfloat16)
    model.activation_checkpointing, model.selective = policy == "full", policy == "selective"
    return Objective(model, ObjectiveConfig(), CodecSpec(BITS, 16, 4, "bench"))


def batch(objective: Objective, grid: tuple[int, int, int]) -> Batch:
    one = torch.ones(1, dtype=torch.int64)
    size = grid[0] * objective.spec.frame_bytes(*grid[1:])
    bits = torch.randint(0, 256, (1, size), dtype=torch.uint8)
    return Batch(bits, one.unsqueeze(1), one, torch.ones(1), one, grid, ("",))


def measure(objective: Objective, grid: tuple[int, int, int], policy: Checkpointing) -> Measured:
    """One forward and backward; the first gradients are made here too, and belong to the weights."""
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ready = batch(objective, grid)
    tokens = grid[0] * objective.spec.positions(*grid[1:])
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    now = psutil.Process().memory_info().rss // 1024
    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        objective(ready, 0, 0.0)["loss"].backward()
    seconds = time.perf_counter() - began
    rise = max(held, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) - now
    planned = peak_bytes(objective.model.config, tokens + 1, BITS, size=2, policy=policy, blocks=True)
    return Measured(tokens, allocated(profiler), 1024 * rise, planned, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--policy", choices=get_args(Checkpointing), default="none")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    objective = thin(arguments.width, arguments.layers, arguments.policy, arguments.compile)
    for grid in ((1, 12, 21), (2, 12, 21), (2, 24, 42)) if arguments.compile else ((1, 12, 21),):  # also for sizes that change
        objective(batch(objective, grid), 0, 0.0)["loss"].backward()
    found = measure(objective, GRID, arguments.policy)
    with Largest() as largest, torch.no_grad():
        objective(batch(objective, GRID), 0, 0.0)
    recipe = load(Path(__file__).resolve().parents[1] / "configs" / "videoar_l.yaml").get(ModelConfig)
    print(f"{found.tokens:,} tokens, width {arguments.width}, {arguments.layers} layers, policy {arguments.policy}, "
          f"{found.seconds:.1f} s forward and backward")  # fmt: skip
    print(f"peak: allocator {found.peak / 2**20:,.1f} MiB, planned {found.planned / 2**20:,.1f} MiB ({found.share:.3f} of the plan); "
          f"resident memory rose by {found.resident / 2**20:,.0f} MiB")  # fmt: skip
    print(f"largest tensor: {largest.elements:,} elements ({largest.name}); tokens x tokens would be {found.tokens**2:,}")
    for policy in get_args(Checkpointing):
        whole = peak_bytes(recipe, found.tokens, BITS, size=2, policy=policy, blocks=False)
        print(f"recipe L, planned, activations of one sample, policy {policy}: {whole / 2**30:.1f} GiB")
    dense = arguments.layers * objective.model.config.heads * found.tokens**2 * 2
    line = {
        "name": "memory_model",
        "unit": "MiB",
        "ours": round(found.peak / 2**20, 1),
        "plain": round(dense / 2**20, 1),
        "ratio": round(dense / found.peak, 2),
        "limit": round(found.planned / 2**20, 1),
        "limit_share": round(found.share, 3),
        "resident": round(found.resident / 2**20, 1),
        "largest_elements": largest.elements,
        "dense_elements": found.tokens**2,
    }
    print(json.dumps(line))
    return 0 if largest.elements < found.tokens**2 / 4 and abs(found.share - 1) < 0.15 else 1


if __name__ == "__main__":
    sys.exit(main())
