"""Codec throughput: frames a second of encode and decode against what the network's own FLOPs cost at the convolution peak.

    python benchmarks/bench_codec.py [--width 32] [--frames 17] [--side 128] [--dtype float32] [--memory]

limit: the frames a second if every convolution ran at the best rate that a plain 3x3x3 convolution reaches here, and all else
were free, in CPU time. plain: the same network with the layout and padding that one writes first (NCDHW memory, explicit zero frames in
front of every convolution). All are measured in this run, one after another, three times each, the best taken.
`gpu_codec` is the part that `videoar bench gpu` calls: the paper's network in bfloat16 on a card, in shares of the product peak.
--memory: peak resident memory of streaming 129 and 1,025 frames in chunks of 16, each in its own process; the bar is 1.2x.
Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.runtime.memory import keep_freed_memory
from tokenizer.codec import VideoCodec, save
from tokenizer.config import NetworkConfig
from tokenizer.network import causal_conv
from tokenizer.network.blocks import ResidualBlock
from tokenizer.network.causal_conv import CausalConv
from tokenizer.network.convolution import form
from tokenizer.network.frame_norm import FrameNorm, clips_of, frames_of
from tokenizer.network.network import Network
from tokenizer.quantization.codec_spec import CodecSpec


def best(action: Callable[[], object], times: int = 3) -> float:
    """CPU seconds a thread of the fastest of `times` calls, after one that warms up: neighbours disturb wall time more."""
    action()
    found = []
    for _ in range(times):
        began = time.process_time()
        action()
        found.append((time.process_time() - began) / torch.get_num_threads())
    return min(found)


def convolution_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the best of some 3x3x3 convolutions, channels last."""
    rates = []
    for channels, frames, side in ((64, 8, 64), (128, 8, 32), (256, 4, 32)):
        x = torch.randn(1, channels, frames, side, side, dtype=dtype).to(memory_format=torch.channels_last_3d)
        w = torch.randn(channels, channels, 3, 3, 3, dtype=dtype).to(memory_format=torch.channels_last_3d)
        flops = 2 * 27 * channels**2 * frames * side**2
        with torch.no_grad():
            rates.append(flops / best(lambda x=x, w=w: F.conv3d(x, w, padding=1)))  # type: ignore[misc]
    return max(rates)


def flops_of(module: torch.nn.Module, run: Callable[[], object]) -> int:
    """Multiply-adds x 2 of all convolutions in one run."""
    total = 0

    def count(conv: torch.nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, CausalConv)
        # a lone first frame runs the last temporal slice only
        taps = conv.kernel**2 * (1 if output.shape[2] == 1 else conv.kernel_t)
        total += 2 * output.numel() * conv.conv.in_channels * taps

    hooks = [part.register_forward_hook(count) for part in module.modules() if isinstance(part, CausalConv)]
    run()
    for hook in hooks:
        hook.remove()
    return total


def forms_of(run: Callable[[], object]) -> dict[str, int]:
    """How many convolutions of one run are computed in which form (tokenizer/network/convolution.py)."""
    found: Counter[str] = Counter()
    ours = causal_conv.convolve

    def watched(x: Tensor, weight: Tensor, *given: Any) -> Tensor:
        found[form(x.device, x.dtype, weight.shape[2:], given[1])] += 1
        return ours(x, weight, *given)

    with mock.patch.object(causal_conv, "convolve", watched):
        run()
    return dict(found)


def plain_convolution(
    self: CausalConv, x_BCTHW: Tensor, stream: object = None, norm: torch.nn.Module | None = None, **_: object
) -> Tensor:
    """The convolution as one writes it first: contiguous memory, zero frames and borders made explicit."""
    x_BCTHW = x_BCTHW if norm is None else norm(x_BCTHW)
    side = self.kernel // 2
    borders = (0, 1, 0, 1) if self.stride == 2 else (side, side, side, side)
    padded = F.pad(x_BCTHW.contiguous(), (*borders, self.kernel_t - 1, 0))
    return F.conv3d(padded, self.conv.weight.contiguous(), self.conv.bias, (self.stride_t, self.stride, self.stride))


def gpu_codec(device: str, rounds: int) -> list[dict[str, object]]:
    """Encode and decode at the paper's size in bfloat16: shares of the measured product peak, and the same with torch's norms.

    On a CPU a tiny network at tiny shapes, as a dry run.
    """
    dry = torch.device(device).type == "cpu"
    config = NetworkConfig(bits=48, width=8 if dry else 128, groups=4 if dry else 32)
    dtype = torch.float32 if dry else torch.bfloat16
    torch.manual_seed(0)
    network = Network(config)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 5:  # zeros would need less power, and so compute faster
                weight.normal_(std=weight[0].numel() ** -0.5)
    spec = CodecSpec(config.bits, config.spatial_stride, config.temporal_stride, "")
    codec = VideoCodec(network, spec, device=device, dtype=dtype)
    peak = product_peak(device, dtype, 256 if dry else 8192)
    rows: list[dict[str, object]] = []
    for clips, frames, height, width in ((1, 5, 32, 32), (2, 1, 32, 48)) if dry else ((8, 17, 128, 128), (1, 33, 384, 672)):
        generator = torch.Generator().manual_seed(0)
        video = torch.randint(0, 256, (clips, frames, height, width, 3), dtype=torch.uint8, generator=generator).to(device)
        bits = codec.encode(video).bits

        def encode(video: Tensor = video) -> object:
            return codec.encode(video)

        def decode(bits: Tensor = bits, height: int = height, width: int = width) -> object:
            return codec.decode(bits, height, width)

        for name, module, run, wanted in (
            ("encode", codec.network.encoder, encode, 0.5),
            ("decode", codec.network.decoder, decode, 0.55),
        ):
            flops = flops_of(module, run)
            seconds = wall(run, device, rounds)
            with torch_norms():
                simple = wall(run, device, rounds)
            rows.append(
                {
                    "name": f"codec {name}, {clips} x {frames} x {height} x {width}",
                    "unit": "of the product peak",
                    "value": round(flops / seconds / peak, 3),
                    "wanted": wanted,
                    "at_most": False,
                    "frames_per_s": round(clips * frames / seconds, 1),
                    "tflops": round(flops / seconds / 1e12, 1),
                    "peak_tflops": round(peak / 1e12, 1),
                    "with_torch_norms": round(flops / simple / peak, 3),
                }
            )
    return rows


def product_peak(device: str, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of a square matrix product."""
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / wall(lambda: a @ b, device, 10)


def wall(action: Callable[[], object], device: str, rounds: int) -> float:
    """Median seconds of `rounds` calls after two that warm up."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    found = []
    for _ in range(rounds + 2):
        wait()
        began = time.perf_counter()
        action()
        wait()
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])


@contextlib.contextmanager
def torch_norms() -> Iterator[None]:
    """Torch's group norm, SiLU, padding and sums in place of the kernels."""

    def norm(self: FrameNorm, x: Tensor, held: int = 0, bias_C: Tensor | None = None) -> Tensor:
        assert bias_C is None
        y = self.norm(frames_of(x)) if x.numel() else frames_of(x)
        return F.pad(clips_of(F.silu(y) if self.act else y, x.shape[0]), (0, 0, 0, 0, held, 0))

    def block(self: ResidualBlock, x: Tensor, stream: object = None) -> Tensor:
        h = self.conv2(self.conv1(x, None, self.norm1), None, self.norm2)
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))

    with mock.patch.object(FrameNorm, "forward", norm), mock.patch.object(ResidualBlock, "forward", block):
        yield


def stream(folder: str, frames: int, side: int) -> int:
    """Encode and decode `frames` frames in chunks of 16; returns peak resident bytes of this process."""
    codec = VideoCodec.load(folder)
    encoding = decoding = None
    for begin in range(0, frames, 16):
        count = min(16, frames - begin)
        chunk = torch.randint(0, 256, (1, count, side, side, 3), dtype=torch.uint8)
        encoded, encoding = codec.encode_chunk(chunk, encoding, last=begin + count == frames)
        if encoded.bits.shape[1]:
            _, decoding = codec.decode_chunk(encoded.bits, side, side, decoding)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--stream", nargs=2, metavar=("FOLDER", "FRAMES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.stream:
        print(stream(options.stream[0], int(options.stream[1]), options.side))
        return 0
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    config = NetworkConfig(bits=48, width=options.width)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch) / "tokenizer"
        save(folder, config, Network(config).state_dict(), {})
        if options.memory:
            return memory(folder, options.side)
        codec = VideoCodec.load(folder, dtype=dtype)
    keep_freed_memory()  # as the jobs do
    frames = torch.randint(0, 256, (1, options.frames, options.side, options.side, 3), dtype=torch.uint8)
    bits = codec.encode(frames).bits
    peak = convolution_peak(dtype)
    rows = {}
    for name, module, run in (
        ("encode", codec.network.encoder, lambda: codec.encode(frames)),
        ("decode", codec.network.decoder, lambda: codec.decode(bits, options.side, options.side)),
    ):
        flops = flops_of(module, run)
        seconds = best(run)
        ours = CausalConv.forward
        CausalConv.forward = plain_convolution  # type: ignore[assignment, method-assign]
        try:
            simple = best(run)
        finally:
            CausalConv.forward = ours  # type: ignore[method-assign]
        rows[name] = (flops, seconds, simple)
        forms = ", ".join(f"{count} {name}" for name, count in sorted(forms_of(run).items()))
        rate = options.frames / seconds
        print(
            f"{name}: {rate:7.1f} frames/s, {flops / 1e9:.1f} GFLOP, {flops / seconds / 1e9:.0f} GFLOP/s = "
            f"{flops / seconds / peak:.2f} of the convolution peak {peak / 1e9:.0f}; plain {options.frames / simple:.1f} frames/s; "
            f"convolutions by form: {forms}"
        )
    flops, seconds, simple = (sum(row[i] for row in rows.values()) for i in range(3))
    both, limit = options.frames / seconds, options.frames / (flops / peak)
    record = {
        "name": "codec",
        "unit": "frames/s, encode and decode",
        "ours": both,
        "plain": options.frames / simple,
        "ratio": simple / seconds,
        "limit": limit,
        "limit_share": both / limit,
        "dtype": options.dtype,
        "width": options.width,
        "shape": [options.frames, options.side, options.side],
    }
    print(json.dumps(record))
    return 0


def memory(folder: Path, side: int) -> int:
    """Print peak memory of a short and a long stream; exit code 1 over the bar."""
    peaks = []
    for frames in (129, 1025):
        command = [sys.executable, __file__, "--side", str(side), "--stream", str(folder), str(frames)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"{frames:5d} frames: peak {peaks[-1] / 1e6:.0f} MB")
    share = peaks[1] / peaks[0]
    print(
        json.dumps({"name": "codec-memory", "unit": "bytes", "ours": peaks[1], "plain": peaks[0], "ratio": share, "limit": 1.2})
    )
    return 0 if share <= 1.2 else 1


if __name__ == "__main__":
    sys.exit(main())
