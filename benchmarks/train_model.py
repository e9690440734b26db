"""One training step of the transformer on this CPU: ours, a plain eager block with a dense mask, and the limit.

    python benchmarks/train_model.py [--shape image|video] [--rounds 3] [--cpu-time]

Forward, backward and AdamW (fused, on the weights' own type, the same for both) at width 512, 8 layers, 8 heads.
`image`: 680 video tokens (one 16x16 grid in ten scales), batch 4. `video`: 9 latent frames of 192x336, 4,248 tokens, batch 1.
Ours is the whole objective (flips, re-quantised labels, fused bit loss) in bfloat16 with compiled element-wise parts and block
attention; plain is a LLaMA block written the usual way, in the better of float32 and bfloat16. FLOPs count the pairs that the
mask allows; the limit is the best matrix product of the whole run, measured between the steps. `--cpu-time` runs one thread and
counts its own seconds, which neighbours on the machine disturb less. Prints each way's best step against that limit, and the median
over rounds of a step against the products beside it, run for a third of a second (neighbours slow both down alike); then one JSON
line, where `limit_share` is the first, stricter one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.runtime.memory import keep_freed_memory
from pretrain.attention.attention import Mask
from pretrain.attention.token_layout import Layout
from pretrain.data.batch import Batch
from pretrain.estimate.flops import attended_pairs, training_flops
from pretrain.model import rope
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from tokenizer.quantization.codec_spec import CodecSpec
from tokenizer.quantization.scale_schedule import Scales, scales

BITS, WIDTH, LAYERS, HEADS, HIDDEN = 32, 512, 8, 8, 1408
IMAGE: Scales = tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
SHAPES = {"image": ((1, 16, 16), IMAGE, 4), "video": ((9, 12, 21), scales(12, 21), 1)}


class PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)
        self.q_norm, self.k_norm = nn.RMSNorm(WIDTH // HEADS, eps=1e-6), nn.RMSNorm(WIDTH // HEADS, eps=1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = rope.rotate(self.q_norm(q), cos, sin), rope.rotate(self.k_norm(k), cos, sin)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def plain_step(layout: Layout, batch: int, dtype: torch.dtype) -> Callable[[], None]:
    length = torch.ones(batch, dtype=torch.int64)
    mask = Mask((layout,), length.unsqueeze(1)).dense()
    cos, sin = rope.tables(rope.positions(layout, length), ModelConfig(layers=LAYERS, width=WIDTH, heads=HEADS))
    cos, sin = cos.to(dtype), sin.to(dtype)
    blocks = nn.ModuleList(PlainBlock() for _ in range(LAYERS)).to(dtype)
    word, head = nn.Linear(BITS, WIDTH).to(dtype), nn.Linear(WIDTH, BITS).to(dtype)
    parameters = [p for part in (blocks, word, head) for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    features = torch.randn(batch, layout.length, BITS, dtype=dtype)
    labels = (torch.rand(batch, layout.length, BITS) < 0.5).float()

    def step() -> None:
        x = word(features)
        for block in blocks:
            x = block(x, cos, sin, mask)
        F.binary_cross_entropy_with_logits(head(x).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(layout: Layout, grid: tuple[int, int, int], batch: int) -> Callable[[], None]:
    spec = CodecSpec(BITS, 16, 4, "bench", {f"{grid[1]}x{grid[2]}": layout.scales})
    config = ModelConfig(layers=LAYERS, width=WIDTH, heads=HEADS, ffn=HIDDEN, compile=True)
    objective = Objective(VideoAR(config, BITS, 256).to(torch.bfloat16), ObjectiveConfig(), spec)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4, fused=True)
    samples = Batch(
        bits=torch.randint(0, 256, (batch, grid[0] * spec.frame_bytes(*grid[1:])), dtype=torch.uint8),
        text=torch.zeros(batch, 1, dtype=torch.int64),
        text_length=torch.zeros(batch, dtype=torch.int64),
        weight=torch.full((batch,), 1 / batch),
        seeds=torch.arange(batch),
        grid=grid,
        ids=("",) * batch,
    )

    def step() -> None:
        objective(samples, 0, 0.0)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    threads = 1 if arguments.cpu_time else torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()  # as pretrain.engine does on a CPU; all ways gain by it
    torch.manual_seed(0)
    grid, shape, batch = SHAPES[arguments.shape]
    layout = Layout(1, grid[0], shape)
    parameters = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN) + 2 * WIDTH * BITS
    flops = training_flops(parameters, batch * layout.length, LAYERS, WIDTH, batch * attended_pairs(layout))
    ways = {
        "ours": our_step(layout, grid, batch),
        "plain bfloat16": plain_step(layout, batch, torch.bfloat16),
        "plain float32": plain_step(layout, batch, torch.float32),
    }
    square = torch.randn(1024, 1024, dtype=torch.bfloat16)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}

    def products() -> tuple[float, float]:
        """FLOPs a second of the fastest of the products, and of all of them together."""
        taken = []
        while sum(taken) < 0.35:
            began = clock()
            for _ in range(4):
                square @ square
            taken.append(clock() - began)
        work = 8 * square.shape[0] ** 3
        return work / min(taken), len(taken) * work / sum(taken)

    peak = 0.0
    for name, step in ways.items():
        step()  # compile, allocate
        step()
        before = products()
        for _ in range(arguments.rounds):
            began = clock()
            step()
            seconds[name].append(clock() - began)
            after = products()
            shares[name].append(2 * flops / seconds[name][-1] / (before[1] + after[1]))
            peak, before = max(peak, before[0], after[0]), after
    best = {name: min(taken) for name, taken in seconds.items()}
    tokens = batch * layout.video
    print(f"{arguments.shape}: {layout.video} tokens x {batch}, {parameters / 1e6:.1f}M parameters, {flops / 1e9:.0f} GFLOP a step, "
          f"{threads} threads, matrix product {peak / 1e9:.0f} GFLOP/s")  # fmt: skip
    for name, least in best.items():
        print(f"{name:>16} {least:8.3f} s {tokens / least:8.0f} tokens/s {flops / least / peak:6.3f} of the limit, "
              f"median {median(shares[name]):.3f} of the products beside it")  # fmt: skip
    plain = min(best["plain bfloat16"], best["plain float32"])
    line = {
        "name": f"train_model_{arguments.shape}",
        "unit": "tokens/s",
        "ours": round(tokens / best["ours"], 1),
        "plain": round(tokens / plain, 1),
        "ratio": round(plain / best["ours"], 3),
        "limit": round(tokens * peak / flops, 1),
        "limit_share": round(flops / best["ours"] / peak, 3),
        "limit_share_median": round(median(shares["ours"]), 3),
        "threads": threads,
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
