"""The shapes: those of the bars, or tiny ones for a dry run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.gpu.bench import ROOT, Bench
from cluster.config import Config, load
from pretrain.attention.token_layout import Layout
from pretrain.estimate.job_estimate import spec_of
from tokenizer.config import TokenizerConfig
from tokenizer.quantization.codec_spec import CodecSpec

RECIPES = {"L": "videoar_l", "4B": "videoar_4b"}
TINY = ("model.layers=2", "model.width=64", "model.heads=2", "model.ffn=96", "model.compile=false", "train.dtype=float32")


@dataclass(frozen=True)
class Shape:
    """Samples of one layout."""

    name: str
    samples: int
    grid: tuple[int, int, int]
    """Latent frames, rows, columns."""
    text: int
    window: int = 0
    frame_mask: float = 0.0

    def layout(self, spec: CodecSpec) -> Layout:
        return Layout(self.text, self.grid[0], spec.scales(*self.grid[1:]))

    def hidden(self, seed: int) -> torch.Tensor | None:
        """Frames hidden at random, bool (samples, 1, frames)."""
        if not self.frame_mask:
            return None
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(self.samples, 1, self.grid[0], generator=generator) < self.frame_mask).clone()


def recipe(bench: Bench, name: str, *overrides: str) -> Config:
    """The configuration of a size, with `overrides`; two thin layers in a dry run."""
    path = ROOT / "configs" / f"{RECIPES[name]}.yaml"
    return load(path, (*(TINY if bench.dry else ()), "train.ema=0", *overrides))


def spec(config: Config) -> CodecSpec:
    return spec_of(config.get(TokenizerConfig))


def short(bench: Bench) -> Shape:
    """17 x 128 x 128: 650 video tokens and 32 of text."""
    return Shape("3 x 30", 3, (2, 2, 4), 6) if bench.dry else Shape("16 x 682", 16, (5, 8, 8), 32)


def long(bench: Bench) -> Shape:
    """33 frames of 384 x 672: 23,652 video tokens and 512 of text, window 8, each frame hidden with probability 0.1."""
    if bench.dry:
        return Shape("1 x 268", 1, (5, 4, 6), 8, window=2, frame_mask=0.3)
    return Shape("1 x 24,164", 1, (9, 24, 42), 512, window=8, frame_mask=0.1)


def longest(bench: Bench) -> Shape:
    """65 frames of 384 x 672: 44,676 video tokens and 512 of text."""
    if bench.dry:
        return Shape("1 x 372", 1, (7, 4, 6), 8, window=2, frame_mask=0.3)
    return Shape("1 x 45,188", 1, (17, 24, 42), 512, window=8, frame_mask=0.1)


def pairs(layout: Layout, window: int, hidden: list[bool] | None) -> int:
    """The (query, key) pairs that the mask allows in one sample; `hidden`: for each latent frame, whether later ones do not see it."""
    total = layout.text * (layout.text + 1) // 2
    for frame in range(layout.frames):
        first = max(0, frame - window) if window else 0
        seen = sum(1 for earlier in range(first, frame) if hidden is None or not hidden[earlier])
        before = layout.text + seen * layout.frame
        for begin, end in zip(layout.offsets, layout.offsets[1:]):
            total += (end - begin) * (before + end)
    return total
