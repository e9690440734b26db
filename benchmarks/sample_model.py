"""The sampler against the same sampling without a cache: 5 latent frames of 8x8, 6 scales each.

    python benchmarks/sample_model.py [--width 256] [--layers 6] [--captions 2] [--rounds 2] [--cpu-time]

Both make the same bits. The plain way runs the whole sequence so far at each of the 30 steps. The limit is the time of the
matrix products that cached sampling needs, at the rate of one large product in the same run. Also compares the cache's bytes
with its formula. `--cpu-time` runs one thread and counts its own seconds, for a busy machine. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.config import load
from pretrain.attention.attention import Mask, bind_mask
from pretrain.attention.token_layout import Layout
from pretrain.estimate.flops import attended_pairs, training_flops
from pretrain.model import fused_ops
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective import counter_rng, teacher_forcing
from pretrain.sampling import guidance
from pretrain.sampling.clip_graphs import ClipGraphs
from pretrain.sampling.guidance import SampleConfig
from pretrain.sampling.kv_cache import KVCache, aligned
from pretrain.sampling.sampler import Sampler
from tokenizer.quantization.bit_packing import pack
from tokenizer.quantization.bsq import codes, resize_linear
from tokenizer.quantization.codec_spec import CodecSpec

GRID = (5, 8, 8)
SPEC = CodecSpec(16, 16, 4, "bench")
PAPER_SPEC = CodecSpec(48, 16, 4, "bench")
PAPER_SECONDS = {"L": 0.86, "XL": 1.12}
"""Seconds a clip of 17 x 128 x 128, from the paper's table of sizes; its card is not named."""
CONFIGS = Path(__file__).resolve().parents[1] / "configs"

Way = Literal["eager", "compiled", "graphs"]


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


def gpu_sampling(device: torch.device | str, rounds: int) -> list[dict[str, Any]]:
    """Return figures of L and XL on a GPU, the fastest way first.

    Keys: name, seconds (median of a clip, or of all clips of a batch), forwards, ms_a_forward, first_call_s (compiling and recording
    included), limit_share, paper_seconds (of one clip; None for a batch).
    """
    found = []
    for size in ("L", "XL"):
        # A second size in one process would be compiled with sizes of weights left open.
        torch.compiler.reset()
        fused_ops.compiled.cache_clear()
        model = random_model(size, device)
        cases: list[tuple[int, Way]] = [(1, "graphs"), (16, "graphs"), (1, "compiled"), (1, "eager")]
        found += [measure(size, captions, device, rounds, way=way, model=model) for captions, way in cases]
        del model
        gc.collect()
    return found


def measure(
    model_size: str,
    captions: int,
    device: torch.device | str,
    rounds: int,
    *,
    way: Way = "graphs",
    model: VideoAR | None = None,
) -> dict[str, Any]:
    """Return the figures of `captions` clips of GRID sampled together. model_size: as in configs/, such as L. Keys: see above.

    way: steps from Python (`eager`), with compiled blocks (`compiled`), or these recorded as CUDA graphs (`graphs`).
    """
    config = load(CONFIGS / f"videoar_{model_size.lower()}.yaml")
    model = random_model(model_size, device) if model is None else model
    for block in model.blocks:
        block.compiled = way != "eager"  # type: ignore[assignment]
    graphs = ClipGraphs() if way == "graphs" else None
    sampler = Sampler(model, PAPER_SPEC, TextTokenizer.make(model.config), config.get(SampleConfig), graphs)
    texts = [f"a person walks along a river, number {number}" for number in range(captions)]

    def clip() -> float:
        _wait(device)
        began = time.perf_counter()
        sampler.sample(texts, GRID, seed=1)
        _wait(device)
        return time.perf_counter() - began

    first = clip()
    seconds = statistics.median(clip() for _ in range(rounds))
    scales = PAPER_SPEC.scales(*GRID[1:])
    forwards = GRID[0] * len(scales)
    weights = [p for name, p in model.named_parameters() if not name.startswith(("text.", "start.", "scale."))]
    matrices = sum(p.numel() for p in weights if p.ndim == 2)
    bytes_a_second, flops = _rates(device)
    rows = sampler.conditions(texts)[0].shape[0]
    limit = GRID[0] * sum(
        max(sum(p.nbytes for p in weights) / bytes_a_second, 2 * matrices * rows * height * width / flops)
        for height, width in scales
    )
    return {
        "name": f"sample {model_size}, {captions} {'clip' if captions == 1 else 'clips'}, {way}",
        "seconds": round(seconds, 4),
        "forwards": forwards,
        "ms_a_forward": round(1000 * seconds / forwards, 3),
        "first_call_s": round(first, 2),
        "limit_share": round(limit / seconds, 3),
        "paper_seconds": PAPER_SECONDS.get(model_size) if captions == 1 else None,
    }


def random_model(size: str, device: torch.device | str) -> VideoAR:
    """Return the model of configs/videoar_SIZE.yaml with random weights in bfloat16."""
    config = load(CONFIGS / f"videoar_{size.lower()}.yaml").get(ModelConfig)
    with torch.device(device):
        torch.manual_seed(0)
        return VideoAR(config, PAPER_SPEC.bits, TextTokenizer.make(config).vocabulary).to(torch.bfloat16).eval()


def _rates(device: torch.device | str) -> tuple[float, float]:
    """Return bytes a second of a large copy (read and written), and operations a second of a large product in bfloat16."""
    is_gpu = torch.device(device).type == "cuda"
    source = torch.zeros((1 << 30) if is_gpu else (1 << 24), dtype=torch.uint8, device=device)
    target, square = (
        torch.empty_like(source),
        torch.ones((8192, 8192) if is_gpu else (128, 128), dtype=torch.bfloat16, device=device),
    )
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device), 2 * square.shape[0] ** 3 / _best(
        lambda: square @ square, device
    )


def _best(work: Callable[[], object], device: torch.device | str) -> float:
    """Return the shortest time of one of ten calls, of which five are timed together."""
    best = float("inf")
    for _ in range(2):
        _wait(device)
        began = time.perf_counter()
        for _ in range(5):
            work()
        _wait(device)
        best = min(best, (time.perf_counter() - began) / 5)
    return best


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--captions", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    if arguments.gpu:
        rows = gpu_sampling("cuda", arguments.rounds)
        for row in rows:
            print(
                f"{row['name']:<28} {row['seconds']:7.3f} s {row['ms_a_forward']:7.2f} ms  {100 * row['limit_share']:5.1f} % of the limit"
            )
        print(*(json.dumps(row) for row in rows), sep="\n")
        return 0
    return _cached_against_plain(arguments)


def _cached_against_plain(arguments: argparse.Namespace) -> int:
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
    layout = Layout(sampler.conditions(captions)[0].shape[1], GRID[0], SPEC.scales(*GRID[1:]))
    held = KVCache(model_config, layout, rows, 0, torch.float32).data.nbytes
    planned = 2 * arguments.layers * rows * aligned(layout.length) * arguments.width * 4
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
