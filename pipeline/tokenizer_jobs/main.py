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

import torch

from cluster.config import Config, ConfigError, RunConfig, load
from cluster.metrics import MetricsPortError
from cluster.runtime.malloc import keep_freed_memory
from pipeline.config import CorpusConfig
from pipeline.corpus.listing import find
from pipeline.tokenizer_jobs.clip_sampler import VideoClips
from pipeline.tokenizer_jobs.reconstruct import reconstruct
from tokenizer.config import TokenizerConfig

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="pipeline.tokenizer_jobs.main", description=__doc__.split("\n", 1)[0] if __doc__ else None
    )
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
