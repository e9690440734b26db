"""A training step of the demo's tokenizer (forward and backward) with our convolutions and norms, and with torch's.

    python benchmarks/bench_tokenizer_step.py [--rounds 5]

One thread, float32, CPU seconds, best of the rounds. plain: the same network with F.conv3d and torch's group norm, which is what
it was before. limit: three times the forward pass's FLOPs at the best rate of a plain 3x3x3 convolution. The clip counts are what a
rank has: one each, with two ranks. Bars: at least 3 times as fast as plain with one clip; one clip at most 0.6 of two.
Prints a table and one JSON line for one clip of the demo's two shapes, in the mix of its recipe (10 to 1).
"""

from __future__ import annotations

import argparse
import json
import sys
from unittest import mock

import torch
import torch.nn.functional as F

from benchmarks.bench_codec import best, convolution_peak, flops_of, torch_norms
from cluster.runtime.memory import keep_freed_memory
from tokenizer.config import NetworkConfig, TokenizerConfig
from tokenizer.network import causal_conv
from tokenizer.quantization.scale_schedule import scales
from tokenizer.training.autoencoder import Autoencoder

SHAPES = ((9, 64, 10), (17, 96, 1))
"""Frames, side, and how often the demo's recipe takes it."""
BARS = {"ratio": 3.0, "one_of_two": 0.6}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(json.dumps(measure(options.rounds)))
    return 0


def measure(rounds: int, shapes: tuple[tuple[int, int, int], ...] = SHAPES) -> dict[str, object]:
    torch.manual_seed(0)
    network = NetworkConfig(bits=16, width=16, patch=2, multipliers=(1, 2, 2), blocks=1, groups=1)
    model = Autoencoder(TokenizerConfig.model_validate({"network": network, "training": {"dtype": "float32"}}))
    peak = convolution_peak(torch.float32)
    ours = plain = limit = 0.0
    shares = []
    for frames, side, weight in shapes:
        listed = scales(side // network.spatial_stride, side // network.spatial_stride)
        seconds = {}
        for clips in (1, 2):
            video = torch.rand(clips, 3, frames, side, side) * 2 - 1

            def step(video: torch.Tensor = video, listed: tuple[tuple[int, int], ...] = listed) -> None:
                recon, middle = model(video, listed, [True] * len(listed), True)
                (recon.square().mean() + middle.commitment + middle.entropy).backward()

            seconds[clips] = best(step, rounds)
            with mock.patch.object(causal_conv, "convolve", F.conv3d), torch_norms():
                simple = best(step, rounds)
            print(
                f"{clips} x {frames} x {side} x {side}: {1000 * seconds[clips]:.0f} ms, plain {1000 * simple:.0f} ms, "
                f"{simple / seconds[clips]:.2f} times"
            )
            if clips == 1:
                ours, plain = ours + weight * seconds[1], plain + weight * simple
                limit += weight * 3 * flops_of(model, step) / peak
        shares.append(round(seconds[1] / seconds[2], 3))
    print(f"one clip costs {' and '.join(map(str, shares))} of two; bars: {BARS}")
    return {
        "name": "tokenizer_step",
        "unit": "CPU s",
        "ours": ours,
        "plain": plain,
        "ratio": plain / ours,
        "limit": limit,
        "limit_share": limit / ours,
        "one_of_two": shares,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


if __name__ == "__main__":
    sys.exit(main())
