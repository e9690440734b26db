"""The card's own limits, the attention plan, and attention alone."""

from __future__ import annotations

import time
import tracemalloc
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import shapes
from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.shapes import Shape
from pretrain.attention.attention import Attend, Mask, bind_mask
from pretrain.model.config import ModelConfig


def peak(bench: Bench) -> list[Figures]:
    """The two ceilings: a product of 8192 cubed on random data, and a copy on the card, read and written bytes counted."""
    size = 64 if bench.dry else 8192
    a, b = bench.random(size, size), bench.random(size, size)
    product = bench.seconds(lambda: a @ b, warm=5, rounds=30)
    source = torch.empty(2**16 if bench.dry else 2**31, dtype=torch.uint8, device=bench.device).random_(0, 255)
    target = torch.empty_like(source)
    copy = bench.seconds(lambda: target.copy_(source), rounds=10)
    return [
        {"name": "product", "size": size, "tflops": 2 * size**3 / product / 1e12, "ms": product * 1e3},
        {"name": "copy", "tbytes_per_s": 2 * source.nbytes / copy / 1e12, "ms": copy * 1e3},
    ]


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation returned (its storage, not views)."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, Tensor):
                self.bytes = max(self.bytes, item.untyped_storage().nbytes())
        return out


def mask_of(bench: Bench, shape: Shape, seed: int) -> tuple[Mask, Any]:
    """A mask as the objective makes it, and its layout; other hidden frames and text lengths for each seed."""
    layout = shape.layout(shapes.spec(shapes.recipe(bench, "L")))
    generator = torch.Generator().manual_seed(seed)
    # Drawn anew for each seed, so that no two masks are equal: a plan that is known costs nothing.
    lengths = torch.randint(1, shape.text + 1, (shape.samples, 1), generator=generator)
    return Mask((layout,), lengths, shape.window, shape.hidden(seed)), layout


def mask(bench: Bench) -> list[Figures]:
    """Build the plan of attention anew at each call, as in a step in which it changes."""
    found = []
    for shape in (shapes.short(bench), shapes.long(bench), shapes.longest(bench)):
        masks = [mask_of(bench, shape, seed)[0] for seed in range(24)]
        for each in masks[:3]:
            bind_mask("auto", each, bench.device, bench.dtype)
        calls, done = [], []
        for each in masks[3:-2]:
            bench.synchronize()
            began = time.perf_counter()
            bind_mask("auto", each, bench.device, bench.dtype)
            calls.append(time.perf_counter() - began)
            bench.synchronize()
            done.append(time.perf_counter() - began)
        kept = partial(bind_mask, "auto", masks[-3], bench.device, bench.dtype)
        again = bench.wall(kept, rounds=10)
        bench.reset_peak()
        before = bench.allocated()
        with Largest() as largest:
            bind_mask("auto", masks[-2], bench.device, bench.dtype)
        device_bytes = bench.peak() - before
        tracemalloc.start()
        bind_mask("auto", masks[-1], bench.device, bench.dtype)
        host_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        found.append({
            "name": f"mask {shape.name}", "tokens": masks[0].length * shape.samples, "ms": median(done) * 1e3, "call_ms": median(calls) * 1e3,
            "kept_ms": median(again) * 1e3, "largest_tensor_mb": largest.bytes / 1e6, "device_peak_mb": device_bytes / 1e6,
            "host_peak_mb": host_bytes / 1e6,
        })  # fmt: skip
    return found


def attention(bench: Bench, product_tflops: float) -> list[Figures]:
    """Forward and backward of attention, ours and SDPA's causal flash kernel of the same length."""
    long = shapes.long(bench)
    open_window = Shape(long.name, long.samples, long.grid, long.text)
    without = Shape(long.name, long.samples, long.grid, long.text, long.window)
    cases = [("no window", open_window, "L"), ("window", without, "L"), ("window, hidden frames", long, "L")]
    cases += [("no window", shapes.short(bench), "L"), ("window", without, "4B")]
    found = []
    for label, shape, size in cases:
        found += _attention(bench, label, shape, size, product_tflops)
    return found


def _attention(bench: Bench, label: str, shape: Shape, size: str, product_tflops: float) -> list[Figures]:
    model = shapes.recipe(bench, size).get(ModelConfig)
    heads, dim = model.heads, model.width // model.heads
    bound, layout = mask_of(bench, shape, 0)
    text = torch.full_like(bound.text_length, shape.text)
    bound = Mask(bound.documents, text, bound.window, bound.hidden)
    hidden = None if bound.hidden is None else bound.hidden[:, 0].tolist()
    allowed = sum(shapes.pairs(layout, shape.window, hidden and hidden[i]) for i in range(shape.samples))
    causal = shape.samples * layout.length * (layout.length + 1) // 2
    # In the order (B, L, H, D), as the block makes them.
    q, k, v, grad = (bench.random(shape.samples, layout.length, heads, dim).transpose(1, 2) for _ in range(4))
    q, k, v = ((x * scale).requires_grad_() for x, scale in ((q, dim**-0.5), (k, 1.0), (v, 1.0)))
    ours_attend: Attend = bind_mask("auto", bound, bench.device, bench.dtype)

    def sdpa_attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel([SDPBackend.MATH] if bench.dry else [SDPBackend.FLASH_ATTENTION]):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)

    rows = []
    for way, attend, counted in (("ours", ours_attend, allowed), ("sdpa causal", sdpa_attend, causal)):

        def both(attend: Attend = attend) -> None:
            torch.autograd.grad(attend(0, q, k, v), (q, k, v), grad)

        with torch.no_grad():
            first = time.perf_counter()
            attend(0, q, k, v)
            bench.synchronize()
            first = time.perf_counter() - first
            forward = bench.seconds(lambda attend=attend: attend(0, q, k, v))
        total = bench.seconds(both)
        wall = median(bench.wall(both, warm=1, rounds=10))
        bench.reset_peak()
        before = bench.allocated()
        both()
        bench.synchronize()
        flops = 12.0 * counted * model.width
        rows.append({
            "name": f"attention {way}, {shape.name}, {label}, head dimension {dim}", "way": way, "shape": shape.name, "mask": label,
            "head_dimension": dim, "ms": total * 1e3, "forward_ms": forward * 1e3, "wall_ms": wall * 1e3, "first_call_s": first,
            "pairs_share": counted / shape.samples / layout.length**2, "tflops": flops / total / 1e12,
            "share_of_product": flops / total / 1e12 / product_tflops, "peak_mb": (bench.peak() - before) / 1e6,
        })  # fmt: skip
    rows[0]["time_to_sdpa"] = rows[0]["ms"] / rows[1]["ms"]
    return rows
