"""Scores of a tokenizer on held-out videos: `videoar tokenizer eval`.

In:  the configuration: `corpus` names the videos, `tokenizer.weights` the tokenizer, `tokenizer.training` shapes and rate.
Out: a table on the console and one JSON object: PSNR, SSIM, LPIPS, rFVD, bit usage, bits per pixel, frames a second.
Called by: pipeline/tokenizer_jobs/main.py, benchmarks/proof_tokenizer.py.

Clips are taken without overlap from each video in order, so the score is a function of files and configuration. A score that
cannot be had (weights not fetched, frames too small) is null and the table says why.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cluster.config import Config
from cluster.runtime.progress import ProgressBar
from pipeline.config import CorpusConfig
from pipeline.corpus.fetch import local
from pipeline.corpus.listing import find
from pipeline.video import VideoError, iter_frames
from tokenizer.codec import VideoCodec
from tokenizer.config import TokenizerConfig, TrainingBucket
from tokenizer.evaluation import metrics
from tokenizer.evaluation.i3d import I3d
from tokenizer.evaluation.lpips import Lpips
from tokenizer.evaluation.pretrained import available


class ScoreError(ValueError):
    """A corpus or tokenizer that cannot be scored; the message names the mend."""


def held_clips(videos: Sequence[str], fps: float, bucket: TrainingBucket, most: int) -> Iterator[Tensor]:
    """Clips uint8 (T,H,W,3) one behind the other, at most `most`, taken from the videos in turn."""
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
    held: list[Any] = []
    try:
        with local(video) as path:
            for _, picture in iter_frames(path, fps, bucket.height, bucket.width):
                held.append(picture)
                if len(held) == bucket.frames:
                    yield torch.from_numpy(np.stack(held))
                    held = []
    except VideoError as error:
        print(f"left out: {error}", flush=True)


def score(
    codec: VideoCodec, clips: Sequence[Tensor], *, fvd: bool = True, note: Callable[[str], None] = print
) -> dict[str, Any]:
    """Figures of one tokenizer over clips uint8 (T,H,W,3) of one shape."""
    frames, height, width = clips[0].shape[:3]
    latents, rows, columns = codec.spec.grid(frames, height, width)
    scales = codec.spec.scales(rows, columns)
    size = codec.spec.frame_bytes(rows, columns)
    packed, made, encode_s, decode_s = [], [], 0.0, 0.0
    with ProgressBar("reconstruct", len(clips)) as bar:
        for clip in clips:
            began = time.perf_counter()
            bits = codec.encode(clip[None]).bits
            middle = time.perf_counter()
            made.append(codec.decode(bits, height, width)[0].cpu())
            decode_s += time.perf_counter() - middle
            encode_s += middle - began
            packed.append(bits.cpu().reshape(latents, size))
            bar.update()
    real, again = torch.stack(list(clips)), torch.stack(made)
    figures: dict[str, Any] = {
        "clips": len(clips),
        "shape": [frames, height, width],
        **quality(real, again, fvd=fvd, note=note),
        "bits_per_pixel": metrics.bits_per_pixel(size, latents, frames, height, width),
        "bits_per_frame": size * 8 * latents / frames,
        "bit_usage": metrics.bit_figures(torch.cat(packed), scales, codec.spec.bits),
        "encode_frames_per_second": frames * len(clips) / encode_s,
        "decode_frames_per_second": frames * len(clips) / decode_s,
        "tokenizer": codec.spec.digest,
    }
    return figures


def quality(real: Tensor, made: Tensor, *, fvd: bool = True, note: Callable[[str], None] = print) -> dict[str, Any]:
    """PSNR, SSIM, LPIPS (both nets) and rFVD of reconstructions, uint8 (B,T,H,W,3) each; null for what cannot be had."""
    figures: dict[str, Any] = {
        "psnr": float(metrics.psnr(real, made).mean()),
        "ssim": None,
        "lpips_alex": None,
        "lpips_vgg": None,
    }
    figures["rfvd"] = None
    side = min(real.shape[2:4])
    if side >= 11:
        figures["ssim"] = float(metrics.ssim(real, made).mean())
    for key, net in (("lpips_alex", "lpips-alex"), ("lpips_vgg", "lpips-vgg")):
        if side >= 32 and available(net):
            figures[key] = float(metrics.lpips(Lpips(net), real, made).mean())  # type: ignore[arg-type]
    if fvd and available("i3d") and real.shape[1] >= 9 and len(real) >= 2:
        figures["rfvd"] = metrics.rfvd(I3d(), real, made)
    elif fvd and real.shape[1] < 9:
        note("rFVD takes clips of at least 9 frames")
    if not all(available(name) for name in ("lpips-alex", "lpips-vgg", "i3d")):
        note("scoring networks are missing; fetch them with `python -m tokenizer.evaluation.fetch fetch`")
    return figures


def evaluate(config: Config, *, clips: int = 64, report: Path | None = None) -> dict[str, Any]:
    """Score `tokenizer.weights` on the corpus, one table a training shape of several frames; returns and writes the JSON."""
    tokenizer = config.get(TokenizerConfig)
    codec = VideoCodec.load(tokenizer.weights, device="cuda" if torch.cuda.is_available() else "cpu")
    videos = [source.source for source in find(config.get(CorpusConfig))]
    found: dict[str, Any] = {}
    for bucket in tokenizer.training.buckets:
        name = f"f{bucket.frames:03d}x{bucket.height}x{bucket.width}"
        if name in found:
            continue
        chosen = list(held_clips(videos, tokenizer.training.fps, bucket, clips))
        if not chosen:
            raise ScoreError(
                f"no video of the corpus holds {bucket.frames} frames at {tokenizer.training.fps} fps; name longer videos"
            )
        found[name] = score(codec, chosen)
        show(name, found[name])
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"name": "tokenizer", **found}), flush=True)
    return found


def show(name: str, figures: dict[str, Any]) -> None:
    """Print the table of one shape."""
    table = Table(title=f"{name}: {figures['clips']} clips, {figures['bits_per_frame']:.0f} bits a frame")
    for heading in ("PSNR dB", "SSIM", "LPIPS alex", "LPIPS vgg", "rFVD", "bits/pixel", "encode f/s", "decode f/s"):
        table.add_column(heading, justify="right")
    keys = ["psnr", "ssim", "lpips_alex", "lpips_vgg", "rfvd", "bits_per_pixel"]
    keys += ["encode_frames_per_second", "decode_frames_per_second"]
    table.add_row(*("-" if figures[key] is None else f"{figures[key]:.4g}" for key in keys))
    usage = Table(title="bits")
    for heading in ("scale", "entropy a bit", "dead bits"):
        usage.add_column(heading, justify="right")
    for scale, each in figures["bit_usage"].items():
        usage.add_row(scale, f"{each['entropy']:.3f}", f"{100 * each['dead']:.0f} %")
    console = Console()
    console.print(table)
    console.print(usage)
