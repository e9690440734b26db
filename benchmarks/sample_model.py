"""The sampler against the same sampling without a cache: 5 latent frames of 8x8, 6 scales each.

    python benchmarks/sample_model.py [--width 256] [--layers 6] [--captions 2] [--rounds 2] [--cpu-time]

Both make the same bits. The plain way runs the whole sequence so far at each of the 30 steps. The limit is the time of the
matrix products that cached sampling needs, at the rate of one large product in the same run. Also compares the cache's bytes
with its formula. `--cpu-time` runs one thread and counts its own seconds, for a busy machine. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pretrain.estimate.flops import attended_pairs, training_flops
from pretrain.model.attention import Mask, bind_mask
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.token_layout import Layout
from pretrain.model.transformer import VideoAR
from pretrain.objective import counter_rng, teacher_forcing
from pretrain.sampling import guidance
from pretrain.sampling.guidance import SampleConfig
from pretrain.sampling.kv_cache import KVCache
from pretrain.sampling.sampler import Sampler
from tokenizer.quantization.bit_packing import pack
from tokenizer.quantization.bsq import codes, resize_linear
from tokenizer.quantization.codec_spec import CodecSpec

GRID = (5, 8, 8)
SPEC = CodecSpec(16, 16, 4, "bench")


@torch.no_grad()
def without_cache(sampler: Sampler, captions: list[str], seed: int) -> tuple[Tensor, int]:
    """The same clip by running everything so far again at each step; returns bits and forwards."""
    model, config = sampler.model, sampler.config
    scales = SPEC.scales(*GRID[1:])
    ids, length = sampler.conditions(captions)
    layout = Layout(ids.shape[1], GRID[0], scales)
    numbers = layout.tokens().scale[layout.text :]
    positions = model.positions(layout, length)
    seeds = counter_rng.fold(torch.arange(len(captions)), seed)
    total = torch.zeros(len(captions), SPEC.bits, *scales[-1])
    fed, packed, forwards = torch.zeros(len(captions), 0, SPEC.bits), [], 0
    for frame in range(GRID[0]):
        carried, total, maps = total, torch.zeros_like(total), []
        for scale, (rows, columns) in enumerate(scales):
            source = carried if scale == 0 else total
            new = teacher_forcing.resize(source, scales[scale], model.config.input_resize).flatten(2).transpose(1, 2)
            fed = torch.cat((fed, new), dim=1)
            so_far = layout.cut(frame + 1, last=0 if scale + 1 == len(scales) else scale + 1)
            attend = bind_mask("blocks", Mask((so_far,), length.unsqueeze(1)))
            x = model.embed(ids, fed.repeat(2, 1, 1), numbers[: so_far.video], starts=True)
            hidden = model(x, positions[:, : so_far.length], attend)[:, -rows * columns :]
            forwards += 1
            logits = guidance.guided(model.head(hidden)[0], guidance.strength(config, frame, GRID[0], scale, len(scales)))
            drawn = counter_rng.uniform(
                counter_rng.fold(seeds, frame * len(scales) + scale), counter_rng.SAMPLE, logits.shape[1:]
            )
            maps.append((drawn < (logits / config.temperature).sigmoid()).unflatten(1, (rows, columns)))
            total = total + resize_linear(codes(maps[-1]), scales[-1])
        packed.append(pack(maps))
    return torch.cat(packed, dim=1), forwards


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--captions", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    if arguments.cpu_time:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    model_config = ModelConfig(layers=arguments.layers, width=arguments.width, heads=arguments.width // 64, text_length=32)
    text, config = TextTokenizer.make(model_config), SampleConfig()
    model = VideoAR(model_config, SPEC.bits, text.vocabulary).eval()
    captions = ["a person walks", "a dog runs through water"][: arguments.captions] * max(1, arguments.captions // 2)
    calls = 0

    def count(module: torch.nn.Module, inputs: object) -> None:
        nonlocal calls
        calls += 1

    hook = model.register_forward_pre_hook(count)
    sampler = Sampler(model, SPEC, text, config)
    bits = sampler.sample(captions, GRID, seed=1)
    forwards = calls
    hook.remove()
    again, plain_forwards = without_cache(sampler, captions, 1)
    same = (bits == again).float().mean().item()
    size, best = 1024, {"ours": float("inf"), "plain": float("inf")}
    square, peak = torch.randn(size, size), 0.0
    for _ in range(arguments.rounds):
        for _ in range(3):
            began = clock()
            square @ square
            peak = max(peak, 2 * size**3 / (clock() - began))
        began = clock()
        sampler.sample(captions, GRID, seed=1)
        best["ours"] = min(best["ours"], clock() - began)
        began = clock()
        without_cache(sampler, captions, 1)
        best["plain"] = min(best["plain"], clock() - began)
    rows = 2 * len(captions)
    ids, length = sampler.conditions(captions)
    layout = Layout(ids.shape[1], GRID[0], SPEC.scales(*GRID[1:]))
    held = KVCache(model_config, layout, length, 0, torch.float32).data.nbytes
    planned = 2 * arguments.layers * rows * layout.length * arguments.width * 4
    matrices = sum(p.numel() for block in model.blocks for p in block.parameters() if p.ndim == 2)
    flops = training_flops(matrices, rows * layout.length, arguments.layers, arguments.width, rows * attended_pairs(layout)) / 3
    frames = len(captions) * (1 + (GRID[0] - 1) * SPEC.temporal_stride)
    print(f"{forwards} forwards cached, {plain_forwards} without; {100 * same:.2f} % of the packed bytes are the same")
    print(f"cache {held:,} bytes, planned {planned:,}")
    for name, seconds in best.items():
        print(f"{name:>6} {seconds:7.3f} s  {frames / seconds:8.2f} frames/s")
    line = {
        "name": "sample_model",
        "unit": "frames/s",
        "ours": round(frames / best["ours"], 2),
        "plain": round(frames / best["plain"], 2),
        "ratio": round(best["plain"] / best["ours"], 2),
        "limit": round(frames * peak / flops, 2),
        "limit_share": round(flops / best["ours"] / peak, 3),
        "forwards": forwards,
        "cache_bytes": held,
        "cache_bytes_planned": planned,
    }
    print(json.dumps(line))
    return 0 if forwards == 30 and held == planned else 1


if __name__ == "__main__":
    sys.exit(main())
