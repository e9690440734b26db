"""A tokenizer on real videos: `videoar tokenizer eval` scores it, `videoar tokenizer reconstruct` shows it.

In:  the configuration: `corpus` names the videos, `tokenizer.weights` the tokenizer, `tokenizer.training` shapes and frame rate.
Out: a table on the console and one JSON object (PSNR, SSIM, LPIPS, rFVD, bit usage, bits per pixel, frames per second); an mp4.

Clips are taken from each video in order and do not overlap, so the scores are a function of files and configuration. A score that
cannot be computed (weights not fetched, frames too small) is null, and the console says why.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cluster.config import Config
from cluster.runtime.progress import ProgressBar
from pipeline.config import CorpusConfig
from pipeline.corpus.fetch import local
from pipeline.corpus.listing import find
from pipeline.video import VideoError, iter_frames, write_video
from tokenizer.codec import CodecError, VideoCodec
from tokenizer.config import TokenizerConfig, TrainingBucket
from tokenizer.evaluation import metrics
from tokenizer.evaluation.i3d import I3d
from tokenizer.evaluation.lpips import Lpips
from tokenizer.evaluation.pretrained import available

LITTLE = 0.1
"""Share of the differences between clips below which a tokenizer is said to show nothing of them."""
SHALLOW_CLIPS = 8
"""Clips of each shape that are also decoded from their coarse scales alone: each of these decodes costs as much as a whole one."""
CHUNK = 32
"""Pixel frames that go through the codec at once; the stream's memory does not grow with the length of the video."""


class EvaluationError(ValueError):
    """A corpus that cannot be scored; the message says how to fix it."""


# ---- scores -------------------------------------------------------------------------------------------------------


def evaluate(config: Config, *, clips: int = 64, report: Path | None = None) -> dict[str, Any]:
    """Score `tokenizer.weights` on the corpus, one table per training shape; return the JSON object, and write it to `report`."""
    tokenizer = config.get(TokenizerConfig)
    codec = _load(tokenizer)
    videos = [source.source for source in find(config.get(CorpusConfig))]
    found: dict[str, Any] = {}
    for bucket in tokenizer.training.buckets:
        name = f"f{bucket.frames:03d}x{bucket.height}x{bucket.width}"
        if name in found:
            continue
        chosen = list(held_out_clips(videos, tokenizer.training.fps, bucket, clips))
        if not chosen:
            raise EvaluationError(
                f"no video of the corpus has {bucket.frames} frames at {tokenizer.training.fps} fps; name longer videos"
            )
        found[name] = score(codec, chosen)
        print_tables(name, found[name])
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"name": "tokenizer", **found}), flush=True)
    return found


def held_out_clips(videos: Sequence[str], fps: float, bucket: TrainingBucket, most: int) -> Iterator[Tensor]:
    """Yield consecutive clips uint8 (T,H,W,3), at most `most`, one from each video in turn."""
    streams = [_clips_of(video, fps, bucket) for video in videos]
    given = 0
    while streams and given < most:
        for stream in list(streams):
            clip = next(stream, None)
            if clip is None:
                streams.remove(stream)
            elif given < most:
                given += 1
                yield clip


def _clips_of(video: str, fps: float, bucket: TrainingBucket) -> Iterator[Tensor]:
    frames: list[Any] = []
    try:
        with local(video) as path:
            for _, picture in iter_frames(path, fps, bucket.height, bucket.width):
                frames.append(picture)
                if len(frames) == bucket.frames:
                    yield torch.from_numpy(np.stack(frames))
                    frames = []
    except VideoError as error:
        print(f"left out: {error}", flush=True)


def score(
    codec: VideoCodec, clips: Sequence[Tensor], *, fvd: bool = True, note: Callable[[str], None] = print
) -> dict[str, Any]:
    """Return the scores of one tokenizer over clips uint8 (T,H,W,3) of one shape."""
    frames, height, width = clips[0].shape[:3]
    latents, rows, columns = codec.spec.grid(frames, height, width)
    scales = codec.spec.scales(rows, columns)
    size = codec.spec.frame_bytes(rows, columns)
    packed, decoded, encode_s, decode_s = [], [], 0.0, 0.0
    with ProgressBar("reconstruct", len(clips)) as bar:
        for clip in clips:
            began = time.perf_counter()
            bits = codec.encode(clip[None]).bits
            middle = time.perf_counter()
            decoded.append(codec.decode(bits, height, width)[0].cpu())
            decode_s += time.perf_counter() - middle
            encode_s += middle - began
            packed.append(bits.cpu().reshape(latents, size))
            bar.update()
    return {
        "clips": len(clips),
        "shape": [frames, height, width],
        **quality(torch.stack(list(clips)), torch.stack(decoded), fvd=fvd, note=note),
        "depth_psnr": depth_psnr(codec, clips[:SHALLOW_CLIPS], packed[:SHALLOW_CLIPS]),
        "bits_per_pixel": metrics.bits_per_pixel(size, latents, frames, height, width),
        "bits_per_frame": size * 8 * latents / frames,
        "bit_usage": metrics.bit_statistics(torch.cat(packed), scales, codec.spec.bits),
        "encode_frames_per_second": frames * len(clips) / encode_s,
        "decode_frames_per_second": frames * len(clips) / decode_s,
        "tokenizer": codec.spec.digest,
    }


def depth_psnr(codec: VideoCodec, clips: Sequence[Tensor], packed: Sequence[Tensor]) -> dict[str, float]:
    """Return the PSNR in dB of decoding the scales up to each one, by that scale such as `4x4`; a mean over clips.

    clips: uint8 (T,H,W,3). packed: the bits of each, uint8 (T', bytes of a latent frame).
    """
    height, width = clips[0].shape[1:3]
    _, rows, columns = codec.spec.grid(*clips[0].shape[:3])
    found: dict[str, float] = {}
    for depth, (r, c) in enumerate(codec.spec.scales(rows, columns), 1):
        shown = [codec.decode(bits.reshape(1, -1), height, width, depth)[0].cpu() for bits in packed]
        found[f"{r}x{c}"] = float(metrics.psnr(torch.stack(list(clips)), torch.stack(shown)).mean())
    return found


def quality(real: Tensor, reconstructed: Tensor, *, fvd: bool = True, note: Callable[[str], None] = print) -> dict[str, Any]:
    """Return PSNR, SSIM, LPIPS (both networks), rFVD and `explained` of reconstructions, uint8 (B,T,H,W,3) each.

    `explained` is 1 - (squared error) / (squared differences of the clips from their mean). At 0 they show as much as that mean, which
    takes no code: clips that look alike have a high PSNR then too. None stands for a score that cannot be computed. fvd: whether rFVD
    is wanted. note: receives the reasons.
    """
    scores: dict[str, Any] = {
        "psnr": float(metrics.psnr(real, reconstructed).mean()),
        "explained": explained(real, reconstructed),
        "ssim": None,
        "lpips_alex": None,
        "lpips_vgg": None,
        "rfvd": None,
    }
    if scores["explained"] is not None and scores["explained"] < LITTLE:
        note(
            f"explained {scores['explained']:.2f}: the reconstructions are hardly closer to the clips than the mean of all clips is. The tokenizer "
            "has not learnt such clips, or its codes say nothing of what moves before an unchanging background: see `videoar tokenizer reconstruct`. "
            "The second was mended by tokenizer.loss.hardest=0.05 with tokenizer.training.unquantized_steps=1000 and quantization_ramp=1000"
        )
    side = min(real.shape[2:4])
    if side >= 11:
        scores["ssim"] = float(metrics.ssim(real, reconstructed).mean())
    for key, net in (("lpips_alex", "lpips-alex"), ("lpips_vgg", "lpips-vgg")):
        if side >= 32 and available(net):
            scores[key] = float(metrics.lpips(Lpips(net), real, reconstructed).mean())  # type: ignore[arg-type]
    if fvd and available("i3d") and real.shape[1] >= 9 and len(real) >= 2:
        scores["rfvd"] = metrics.rfvd(I3d(), real, reconstructed)
    elif fvd and real.shape[1] < 9:
        note("rFVD needs clips of at least 9 frames")
    if not all(available(name) for name in ("lpips-alex", "lpips-vgg", "i3d")):
        note("weights of scoring networks are missing; fetch them with `python -m tokenizer.evaluation.fetch`")
    return scores


def explained(real: Tensor, reconstructed: Tensor) -> float | None:
    """Return the share of the clips' differences from their mean that reconstructions show, at most 1; None if there are no differences.

    real, reconstructed: uint8 (B,T,H,W,3).
    """
    mean = torch.zeros(real.shape[1:], dtype=torch.float64)
    for clip in real:
        mean += clip.double() / len(real)
    error = spread = 0.0
    for clip, shown in zip(real, reconstructed, strict=True):
        error += float((clip.double() - shown.double()).square().sum())
        spread += float((clip.double() - mean).square().sum())
    return 1 - error / spread if spread else None


def print_tables(name: str, scores: dict[str, Any]) -> None:
    """Print the tables of one shape."""
    table = Table(title=f"{name}: {scores['clips']} clips, {scores['bits_per_frame']:.0f} bits per frame")
    for heading in (
        "PSNR dB",
        "explained",
        "SSIM",
        "LPIPS alex",
        "LPIPS vgg",
        "rFVD",
        "bits/pixel",
        "encode f/s",
        "decode f/s",
    ):
        table.add_column(heading, justify="right")
    keys = ["psnr", "explained", "ssim", "lpips_alex", "lpips_vgg", "rfvd", "bits_per_pixel"]
    keys += ["encode_frames_per_second", "decode_frames_per_second"]
    table.add_row(*("-" if scores[key] is None else f"{scores[key]:.4g}" for key in keys))
    usage = Table(title="bits")
    for heading in ("scale", "entropy per bit", "dead bits", "PSNR dB up to it"):
        usage.add_column(heading, justify="right")
    for scale, each in scores["bit_usage"].items():
        usage.add_row(scale, f"{each['entropy']:.3f}", f"{100 * each['dead']:.0f} %", f"{scores['depth_psnr'][scale]:.1f}")
    console = Console()
    console.print(table)
    console.print(usage)


# ---- reconstruction -----------------------------------------------------------------------------------------------


def reconstruct(
    config: Config, video: str, output: Path, seconds: float = 4.0, size: int = 0, *, by_scale: bool = False
) -> float:
    """Write original | reconstruction side by side as an mp4; return the PSNR in dB.

    size: height and width in pixels; 0 takes the largest training bucket. by_scale: between the two, what the scales up to each one show,
    coarse to fine. Raises CodecError, VideoError or OSError.
    """
    tokenizer = config.get(TokenizerConfig)
    codec = _load(tokenizer)
    fps = tokenizer.training.fps
    largest = max(tokenizer.training.buckets, key=lambda bucket: bucket.height * bucket.width)
    height, width = (size, size) if size else (largest.height, largest.width)
    with local(video) as path:
        wanted = range(max(1, round(seconds * fps)))
        frames = [picture for _, (_, picture) in zip(wanted, iter_frames(path, fps, height, width))]
    stride = codec.spec.temporal_stride
    whole = 1 + (len(frames) - 1) // stride * stride
    if not frames:
        raise CodecError(f"{video}: no frame can be decoded")
    original = np.stack(frames[:whole])
    _, rows, columns = codec.spec.grid(whole, height, width)
    coarse = range(1, len(codec.spec.scales(rows, columns)) if by_scale else 1)
    bits = _encoded(codec, original)
    decoded = _decoded(codec, bits, height, width)
    output.parent.mkdir(parents=True, exist_ok=True)
    panels = (original, *(_decoded(codec, bits, height, width, depth) for depth in coarse), decoded)
    write_video(output, np.concatenate(panels, axis=2), fps)
    error = float(np.mean((original.astype(np.float64) - decoded) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def roundtrip(codec: VideoCodec, frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode one clip of 1 + s*n frames as a stream; return the same shape."""
    return _decoded(codec, _encoded(codec, frames_THWC), *frames_THWC.shape[1:3])


def _encoded(codec: VideoCodec, frames_THWC: NDArray[np.uint8]) -> list[Tensor]:
    """Return the bits of a stream, chunk by chunk: uint8 (1, bytes of its latent frames)."""
    state = None
    bits: list[Tensor] = []
    for begin in range(0, len(frames_THWC), CHUNK):
        chunk = torch.from_numpy(frames_THWC[begin : begin + CHUNK])[None]
        encoded, state = codec.encode_chunk(chunk, state, last=begin + CHUNK >= len(frames_THWC))
        if encoded.bits.shape[1]:
            bits.append(encoded.bits)
    return bits


def _decoded(codec: VideoCodec, bits: Sequence[Tensor], height: int, width: int, depth: int | None = None) -> NDArray[np.uint8]:
    """Return the frames of a stream, uint8 (T,H,W,3). depth: how many scales to use, the coarsest ones; None = all."""
    state = None
    shown: list[Tensor] = []
    for each_1X in bits:
        frames_1THWC, state = codec.decode_chunk(each_1X, height, width, state, depth)
        shown.append(frames_1THWC[0].cpu())
    return torch.cat(shown).numpy()


def _load(tokenizer: TokenizerConfig) -> VideoCodec:
    return VideoCodec.load(tokenizer.weights, device="cuda" if torch.cuda.is_available() else "cpu")
