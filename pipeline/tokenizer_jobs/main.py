"""The process of the tokenizer's jobs: `python -m pipeline.tokenizer_jobs.main train -c CFG [section.key=value ...]`.

In:  words of the command line. Training is started by `videoar tokenizer train`, or by the deepspeed launcher with `--module`.
Out: a tokenizer folder, a side-by-side mp4, or scores; exit code 0 finished, 75 stopped with a checkpoint, 2 a configuration that
     cannot run, 1 any other error.
     The error that ends a rank of training is kept in RUN/log/tokenizer-rank-N.log too.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cluster.config import Config, RunConfig, load
from cluster.runtime.errors import ErrorReport
from cluster.runtime.job_protocol import DONE, ranks_here
from cluster.runtime.memory import keep_freed_memory
from cluster.runtime.process_group import leave
from pipeline.config import CorpusConfig
from pipeline.corpus.listing import find
from pipeline.tokenizer_jobs.clip_sampler import ClipSampler, cache_room
from pipeline.tokenizer_jobs.evaluate import evaluate, reconstruct
from tokenizer.config import TokenizerConfig

OVERRIDE = re.compile(r"[a-z_]+(\.\w+)+=")
"""A word that changes the configuration; it may be anywhere on the line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; return the exit code."""
    # The deepspeed launcher puts its own word in front of the sub-command; the rank is in the environment too.
    words = [word for word in (sys.argv[1:] if arguments is None else arguments) if not word.startswith("--local_rank=")]
    overrides = [word for word in words if OVERRIDE.match(word)]
    given = _parser().parse_args([word for word in words if not OVERRIDE.match(word)])
    rank = int(os.environ.get("RANK", "0"))
    log: Path | None = None
    with ErrorReport(f"error: rank {rank}: " if rank else "error: ", lambda: log) as report:
        config = load(given.config, overrides)
        if not torch.cuda.is_available():
            keep_freed_memory()
        if given.command == "train":
            log = config.get(RunConfig).dir / "log" / f"tokenizer-rank-{rank}.log"
            report.code = train(config)
        elif given.command == "reconstruct":
            psnr = reconstruct(config, given.video, given.output, given.seconds, given.size, by_scale=given.by_scale)
            print(f"{given.output}: PSNR {psnr:.2f} dB", flush=True)
        else:
            evaluate(config, clips=given.clips, report=given.json)
    return report.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeline.tokenizer_jobs.main", description="The tokenizer's jobs that need raw videos."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("train", "train on the corpus"),
        ("reconstruct", "write original and reconstruction side by side as an mp4"),
        ("evaluate", "score on the corpus"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("-c", "--config", required=True, type=Path, help="configuration file (YAML)")
        if name == "reconstruct":
            command.add_argument("video", help="a path or URL")
            command.add_argument("--output", required=True, type=Path, help="the mp4 to write")
            command.add_argument("--seconds", type=float, default=4.0, help="seconds from the start of the video")
            command.add_argument("--size", type=int, default=0, help="height and width; 0 takes the largest training shape")
            command.add_argument("--by-scale", action="store_true", help="also what the scales up to each one show")
        if name == "evaluate":
            command.add_argument("--clips", type=int, default=64, help="clips of each training shape")
            command.add_argument("--json", type=Path, default=None, help="write the scores to this file too")
    return parser


def train(config: Config) -> int:
    """Train the tokenizer on the corpus, as one rank of the job. Returns the exit code, at once when it is complete for this recipe."""
    from tokenizer.training.train import finished, recipe_digest
    from tokenizer.training.train import train as run

    tokenizer = config.get(TokenizerConfig)
    if finished(tokenizer.weights, recipe_digest(config)):
        return DONE
    videos = [source.source for source in find(config.get(CorpusConfig))]
    training = tokenizer.training
    seed = config.get(RunConfig).seed
    room = cache_room(max(1, ranks_here(os.environ)))
    return run(
        config, ClipSampler(videos, training.fps, seed, cache_bytes=room, flip=training.mirror, augment=training.augment)
    )


if __name__ == "__main__":
    leave(main())
