"""The tokenizer's jobs that need raw videos: train, reconstruct, evaluate.

In:  command-line words, as `videoar tokenizer ...` or the deepspeed launcher passes them.
Out: a tokenizer folder; a side-by-side mp4; a table and JSON of scores.
Called by: `deepspeed --num_gpus N --module pipeline.tokenizer_jobs.main train -c CFG [section.key=value ...]`, and cluster/cli/main.py.

It lives here since tokenizer must not import pipeline, and training needs decoded videos.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.config import Config, ConfigError, RunConfig, load
from cluster.metrics import MetricsPortError
from pipeline.tokenizer_jobs.clip_sampler import VideoClips
from pipeline.config import CorpusConfig
from pipeline.corpus.listing import find, local
from pipeline.video import iter_frames, write_video
from tokenizer.codec import CodecError, VideoCodec
from tokenizer.config import TokenizerConfig
from cluster.runtime.malloc import keep_freed_memory

CHUNK = 32
"""Pixel frames that go through the codec at once; the stream keeps memory flat whatever the length."""

OVERRIDE = re.compile(r"[a-z_]+(\.\w+)+=")
"""A word that changes the configuration; it may stand anywhere on the line."""


def train(config: Config) -> None:
    """Train the tokenizer on the corpus; one rank of the job. Returns at once when it is complete for this recipe."""
    from tokenizer.training.train import finished, recipe_digest
    from tokenizer.training.train import train as run

    tokenizer = config.get(TokenizerConfig)
    if finished(tokenizer.weights, recipe_digest(config)):
        return
    videos = [source.source for source in find(config.get(CorpusConfig))]
    training = tokenizer.training
    seed = config.get(RunConfig).seed
    run(config, VideoClips(videos, training.fps, seed, flip=training.mirror, augment=training.augment))


def roundtrip(codec: VideoCodec, frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode one clip of 1 + s*n frames as a stream; same shape."""
    height, width = frames_THWC.shape[1:3]
    encoding = decoding = None
    made: list[torch.Tensor] = []
    for begin in range(0, len(frames_THWC), CHUNK):
        chunk = torch.from_numpy(frames_THWC[begin : begin + CHUNK])[None]
        encoded, encoding = codec.encode_chunk(chunk, encoding, last=begin + CHUNK >= len(frames_THWC))
        if encoded.bits.shape[1]:
            shown, decoding = codec.decode_chunk(encoded.bits, height, width, decoding)
            made.append(shown[0].cpu())
    return torch.cat(made).numpy()


def reconstruct(config: Config, video: str, output: Path, seconds: float = 4.0, size: int = 0) -> float:
    """Write original | reconstruction side by side as an mp4; returns the PSNR in dB.

    size: height and width in pixels; 0 takes the largest training bucket. Raises ValueError or OSError.
    """
    tokenizer = config.get(TokenizerConfig)
    codec = VideoCodec.load(tokenizer.weights, device="cuda" if torch.cuda.is_available() else "cpu")
    fps = tokenizer.training.fps
    largest = max(tokenizer.training.buckets, key=lambda bucket: bucket.height * bucket.width)
    height, width = (size, size) if size else (largest.height, largest.width)
    with local(video) as path:
        wanted = range(max(1, round(seconds * fps)))
        frames = [picture for _, (_, picture) in zip(wanted, iter_frames(path, fps, height, width))]
    stride = codec.spec.temporal_stride
    whole = 1 + (len(frames) - 1) // stride * stride
    if not frames:
        raise CodecError(f"{video}: no frame decodes")
    original = np.stack(frames[:whole])
    again = roundtrip(codec, original)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_video(output, np.concatenate((original, again), axis=2), fps)
    error = float(np.mean((original.astype(np.float64) - again) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pipeline.tokenizer_jobs.main", description=__doc__.split("\n", 1)[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("train", "train on the corpus"),
        ("reconstruct", "side-by-side mp4"),
        ("evaluate", "score on the corpus"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("-c", "--config", required=True, type=Path)
        if name == "reconstruct":
            command.add_argument("video")
            command.add_argument("--output", required=True, type=Path)
            command.add_argument("--seconds", type=float, default=4.0)
            command.add_argument("--size", type=int, default=0)
        if name == "evaluate":
            command.add_argument("--clips", type=int, default=64)
            command.add_argument("--json", type=Path, default=None)
    # the deepspeed launcher puts its own word in front of the sub-command; the rank is in the environment too
    words = [word for word in (sys.argv[1:] if arguments is None else arguments) if not word.startswith("--local_rank=")]
    overrides = [word for word in words if OVERRIDE.match(word)]
    given = parser.parse_args([word for word in words if not OVERRIDE.match(word)])
    try:
        config = load(given.config, overrides)
        if not torch.cuda.is_available():
            keep_freed_memory()
        if given.command == "train":
            train(config)
        elif given.command == "reconstruct":
            psnr = reconstruct(config, given.video, given.output, given.seconds, given.size)
            print(f"{given.output}: PSNR {psnr:.2f} dB", flush=True)
        else:
            from pipeline.tokenizer_jobs.evaluate import evaluate

            evaluate(config, clips=given.clips, report=given.json)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError | MetricsPortError) else 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch may be inside C++ while the interpreter takes itself down, which aborts a rank whose work is done.
    os._exit(code)
