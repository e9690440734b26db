"""The plain alternative: a LLaMA of the same shape as one writes it, compiled block by block, causal SDPA, fused AdamW, no ZeRO.

Weights, gradients and moments are bfloat16: no master weights, so it moves fewer bytes than ours has to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.gpu.bench import Bench
from pretrain.attention.token_layout import Layout
from pretrain.model import rope
from pretrain.model.config import ModelConfig
from pretrain.model.layers import ffn_width


class PlainBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden, self.heads = config.width, ffn_width(config), config.heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q_norm, self.k_norm = nn.RMSNorm(width // self.heads, eps=1e-6), nn.RMSNorm(width // self.heads, eps=1e-6)
        self.qkv, self.o = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        q, k = rope.rotate(self.q_norm(q), cos, sin), rope.rotate(self.k_norm(k), cos, sin)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class PlainModel(nn.Module):
    def __init__(self, config: ModelConfig, bits: int, *, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.word, self.head = nn.Linear(bits, config.width), nn.Linear(config.width, bits)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)

    def forward(self, features: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.word(features)
        for block in self.blocks:
            if self.recompute:
                x = checkpoint(block, x, cos, sin, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin)
        return self.head(self.norm(x))


def plain_step(
    bench: Bench, config: ModelConfig, bits: int, layout: Layout, samples: int, *, recompute: bool
) -> tuple[Callable[[], None], int]:
    """Return a training step, and the number of parameters."""
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = PlainModel(config, bits, recompute=recompute).to(bench.dtype)
    for block in model.blocks:
        block.compile(backend="eager" if bench.dry else "inductor")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    positions = rope.positions(layout, torch.full((samples,), layout.text))
    cos, sin = (part.to(bench.device, bench.dtype) for part in rope.tables(positions, config))
    features = bench.random(samples, layout.length, bits)
    labels = (torch.rand(samples, layout.length, bits, device=bench.device) < 0.5).float()

    def step() -> None:
        loss = F.binary_cross_entropy_with_logits(model(features, cos, sin).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(parameter.numel() for parameter in model.parameters())
