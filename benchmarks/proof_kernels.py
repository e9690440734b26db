"""Every Triton kernel compiled for the cards that it is meant for, on a machine without one: `make proof-kernels`.

    python benchmarks/proof_kernels.py [--capability 80 --capability 90]

The functions that start kernels are called with CPU tensors, and each launch is caught and compiled for each compute capability as
Triton would compile it on the card: with the types of these tensors, and integers that are 1 or divisible by 16 taken as such.
Needs triton, which torch for CUDA brings along; the make target fetches it. Prints one line for each kernel; exit code 1 if one fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pretrain.attention import own_scale
from pretrain.attention.planner import make_plan
from pretrain.attention.token_layout import Layout
from tokenizer.network import cuda_kernels
from tokenizer.quantization.scale_schedule import scales

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program may take, by compute capability."""
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32"}
Launch = tuple[JITFunction[Any], tuple[Any, ...], dict[str, Any]]


def launches() -> list[Launch]:
    """Call everything that starts a kernel, and return what it would have started."""
    found: list[Launch] = []

    def catch(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found.append((self, args, kwargs))

    run = JITFunction.run
    JITFunction.run = catch
    try:
        _attention(torch.bfloat16)
        for dtype in (torch.bfloat16, torch.float32):
            _codec(dtype)
    finally:
        JITFunction.run = run
    return found


def _attention(dtype: torch.dtype) -> None:
    layout = Layout(4, 2, scales(8, 8))
    tiles = make_plan((layout,), [[4]], 0, None, 0, torch.device("cpu")).tiles
    for heads, size in ((4, 32), (4, 64), (3, 80), (2, 128)):
        shape = (layout.length, heads, size)
        q, k, v, grad, out = (torch.zeros(shape, dtype=dtype) for _ in range(5))
        lse = torch.zeros(heads, layout.length)
        own_scale.forward(q, k, v, out, lse, tiles)
        own_scale.backward((grad, q, k, v, out, lse), (q.clone(), k.clone(), v.clone()), tiles)


def _codec(dtype: torch.dtype) -> None:
    for channels, groups, rows in ((12, 4, 1), (64, 32, 16), (512, 32, 8)):
        for biased in (False, True):
            x = torch.zeros(1, channels, 1, rows, rows, dtype=dtype).to(memory_format=torch.channels_last_3d)
            seen = torch.zeros(1, channels, 3, rows, rows, dtype=dtype).to(memory_format=torch.channels_last_3d)
            weight, bias = torch.ones(channels, dtype=dtype), torch.zeros(channels, dtype=dtype)
            cuda_kernels.group_norm_behind(x, seen, groups, (weight, bias, 1e-6), bias if biased else None)
            cuda_kernels.add_residual(x, x.clone(), bias)


def build(launch: Launch, capability: int) -> Any:
    """Return the kernel of one launch, compiled for a card."""
    kernel, args, kwargs = launch
    options = {name: value for name, value in kwargs.items() if name not in kernel.arg_names}
    given = dict(zip(kernel.arg_names, args)) | {name: value for name, value in kwargs.items() if name in kernel.arg_names}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, name in enumerate(kernel.arg_names):
        value = given[name]
        if kernel.params[index].is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[index,] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            attributes[index,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main() -> int:
    """Compile all launches for all cards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, action="append", metavar="N", choices=SHARED, help="default: 80 and 90")
    failed = 0
    for capability in parser.parse_args().capability or (80, 90):
        for launch in launches():
            kernel, args, _ = launch
            first = next(value for value in args if isinstance(value, Tensor))
            label = f"sm_{capability} {kernel.fn.__name__} {TYPES[first.dtype]} {tuple(first.shape)}"
            try:
                built = build(launch, capability)
            except triton.CompilationError as error:
                failed += 1
                print(f"FAILED {label}: {error}")
                continue
            too_much = built.metadata.shared > SHARED[capability] * 1024
            failed += too_much
            print(f"{'FAILED ' * too_much}{label}: {built.metadata.shared} bytes of shared memory", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
