"""Peak memory of one training step at 23,652 tokens (33 frames of 384x672), measured on a thin model, planned for recipe L.

    python benchmarks/memory_model.py [--width 128] [--layers 2] [--recompute]

The thin model runs forward and backward in bfloat16 with compiled element-wise parts at the full length. Prints the process's
peak over what it held before the step beside `pretrain.plan.activation_bytes`, the largest tensor that any operation made (the
mask, were it dense, would have tokens x tokens elements), and the planned bytes of recipe L. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.config import load
from pretrain.batch import Batch
from pretrain.config import ModelConfig, ObjectiveConfig
from pretrain.model import VideoAR
from pretrain.objective import Objective
from pretrain.plan import activation_bytes
from tokenizer.spec import CodecSpec

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


class Peak:
    """Samples the process's resident bytes while a step runs."""

    def __enter__(self) -> Peak:
        self._process, self.most, self._stop = psutil.Process(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, self._process.memory_info().rss)

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--recompute", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    spec = CodecSpec(BITS, 16, 4, "bench")
    config = ModelConfig(layers=arguments.layers, width=arguments.width, heads=arguments.width // 64, compile=True)
    model = VideoAR(config, BITS, 256).to(torch.bfloat16)
    model.activation_checkpointing = arguments.recompute
    objective = Objective(model, ObjectiveConfig(), spec)

    def batch(grid: tuple[int, int, int]) -> Batch:
        one = torch.ones(1, dtype=torch.int64)
        size = grid[0] * spec.frame_bytes(*grid[1:])
        bits = torch.randint(0, 256, (1, size), dtype=torch.uint8)
        return Batch(bits, one.unsqueeze(1), one, torch.ones(1), one, grid, ("",))

    for grid in ((1, 12, 21), (2, 12, 21), (2, 24, 42)):  # compile, also for sizes that change
        objective(batch(grid), 0, 0.0)["loss"].backward()
    objective.zero_grad()
    ready = batch(GRID)
    tokens = GRID[0] * spec.positions(*GRID[1:])
    held = psutil.Process().memory_info().rss
    began = time.perf_counter()
    with Peak() as peak:
        objective(ready, 0, 0.0)["loss"].backward()
    seconds = time.perf_counter() - began
    with Largest() as largest, torch.no_grad():
        objective(ready, 0, 0.0)
    planned = activation_bytes(config, tokens, BITS, size=2, recompute=arguments.recompute)
    recipe = load(Path(__file__).resolve().parents[1] / "configs" / "videoar_l.yaml").get(ModelConfig)
    whole = {
        kind: activation_bytes(recipe, tokens, BITS, size=2, recompute=kind == "recompute") for kind in ("all", "recompute")
    }
    measured = peak.most - held
    print(f"{tokens:,} tokens, width {arguments.width}, {arguments.layers} layers, {seconds:.1f} s forward and backward")
    print(f"activations: measured {measured / 2**20:,.0f} MiB, planned {planned / 2**20:,.0f} MiB")
    print(f"largest tensor: {largest.elements:,} elements ({largest.name}); tokens x tokens would be {tokens**2:,}")
    print(f"recipe L, planned: {whole['all'] / 2**30:.1f} GiB of activations, {whole['recompute'] / 2**30:.1f} GiB recomputing")
    line = {
        "name": "memory_model",
        "unit": "MiB",
        "ours": round(measured / 2**20, 1),
        "plain": round(arguments.layers * math.prod((config.heads, tokens, tokens)) * 2 / 2**20, 1),
        "ratio": round(arguments.layers * config.heads * tokens**2 * 2 / measured, 2),
        "limit": round(planned / 2**20, 1),
        "limit_share": round(planned / measured, 3),
        "largest_elements": largest.elements,
        "dense_elements": tokens**2,
    }
    print(json.dumps(line))
    return 0 if largest.elements < tokens**2 / 4 else 1


if __name__ == "__main__":
    sys.exit(main())
