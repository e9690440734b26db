"""Training of the tokenizer: the loop, readable from top to bottom.

In:  the configuration, and a `ClipSource` that gives the batch of a step.
Out: RUN/tokenizer-metrics.jsonl, RUN/tokenizer-checkpoints/step-*/, and at the end the tokenizer folder `tokenizer.weights`.
Called by: pipeline/tokenizer_job.py, which runs under the deepspeed launcher (or as one process).

All draws are functions of (seed, step): the bucket, the scales left out, the clips. So a run that stops anywhere and is
started again goes on to the last digit at the same number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cluster.config import Config, RunConfig
from cluster.metrics import JsonLines
from cluster.progress import ProgressBar
from tokenizer import codec
from tokenizer.config import TokenizerConfig, TrainingBucket
from tokenizer.engine import start, stop
from tokenizer.network import Network, pixels
from tokenizer.schedule import bucket_at, keep_at
from tokenizer.spec import CodecSpec
from tokenizer.trainer import Autoencoder, Trainer, TrainingError

CHECKPOINTS = "tokenizer-checkpoints"
METRICS = "tokenizer-metrics.jsonl"


class ClipSource(Protocol):
    """Where training clips come from: a pure function of the step."""

    def batch(self, step: int, bucket: TrainingBucket, rank: int, world: int) -> Tensor:
        """This rank's uint8 (b,T,H,W,3) of the global batch of `step`."""
        ...


def recipe_digest(config: Config) -> str:
    """sha256 over all that decides the weights: tokenizer section (without its folder), corpus and seed."""
    tokenizer = config.get(TokenizerConfig).model_dump(mode="json", exclude={"weights"})
    plain = {"tokenizer": tokenizer, "corpus": config.plain()["corpus"], "seed": config.get(RunConfig).seed}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def train(config: Config, clips: ClipSource) -> None:
    """Train the tokenizer of `config` to its end, from its newest checkpoint. All ranks call this.

    Returns at once when `tokenizer.weights` is complete for this recipe. Raises TrainingError, ValueError or OSError.
    """
    tokenizer, run = config.get(TokenizerConfig), config.get(RunConfig)
    training = tokenizer.training
    digest = recipe_digest(config)
    if finished(tokenizer.weights, digest):
        return
    world = start()
    if world.first:
        run.dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    model = Autoencoder(tokenizer)
    if training.init is not None:
        load_init(model.network, training.init)
    spec = CodecSpec(
        tokenizer.network.bits, tokenizer.network.spatial_stride, tokenizer.network.temporal_stride, "", tokenizer.scales
    )
    trainer = Trainer(model, tokenizer, world)
    begin = trainer.resume(run.dir / CHECKPOINTS, digest)
    lines = JsonLines(_cut(run.dir / METRICS, begin)) if world.first else None
    threads = ThreadPoolExecutor(max_workers=max(1, training.workers), thread_name_prefix="clips")
    ahead: dict[int, Future[Tensor]] = {}
    try:
        with ProgressBar("tokenizer", training.steps, done=begin, enabled=world.first) as bar:
            for step in range(begin, training.steps):
                began = time.perf_counter()
                for soon in range(step, min(training.steps, step + max(1, training.workers) + 1)):
                    if soon not in ahead:
                        shape = bucket_at(soon, training, run.seed)
                        ahead[soon] = threads.submit(clips.batch, soon, shape, world.rank, world.size)
                frames = ahead.pop(step).result()
                waited = time.perf_counter() - began
                bucket = bucket_at(step, training, run.seed)
                _, rows, columns = spec.grid(bucket.frames, bucket.height, bucket.width)
                scales = spec.scales(rows, columns)
                keep = keep_at(step, len(scales), training, run.seed)
                figures = trainer.step(pixels(frames.to(world.device)), scales, keep, step)
                if not math.isfinite(figures["loss"]):
                    raise TrainingError(
                        f"step {step + 1}: the loss is not finite; start again with a lower tokenizer.training.learning_rate "
                        f"(checkpoints are kept under {run.dir / CHECKPOINTS})"
                    )
                done = step + 1
                if lines is not None and (done % training.log_every == 0 or done == training.steps):
                    seconds = {"total": time.perf_counter() - began, "data": waited}
                    name = f"f{bucket.frames:03d}x{bucket.height}x{bucket.width}"
                    lines.write({"step": done, "bucket": name, "clips": bucket.batch, **figures, "seconds": seconds})
                if done % training.checkpoint_every == 0 and done < training.steps:
                    trainer.checkpoint(run.dir / CHECKPOINTS, done, digest)
                bar.update(1, note=f"PSNR {figures['psnr']:.1f} dB")
        provenance = {"recipe": digest, "steps": training.steps, "corpus": list(config.plain()["corpus"]["videos"])}
        trainer.finish(tokenizer, provenance)
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
        if lines is not None:
            lines.close()
        stop()


def finished(folder: Path, digest: str) -> bool:
    """Whether `folder` holds the tokenizer of this recipe. Raises TrainingError when it holds another one."""
    if not (folder / codec.JSON_NAME).exists():
        return False
    _, spec, provenance = codec.read_json(folder)
    if provenance.get("recipe") == digest:
        print(f"tokenizer: {folder} is complete for this recipe (digest {spec.digest[:12]}); nothing to do", flush=True)
        return True
    raise TrainingError(
        f"{folder} holds a tokenizer of another recipe; name another tokenizer.weights, or remove the folder to train anew"
    )


def load_init(network: Network, folder: Path) -> None:
    """Start from a tokenizer folder of the same shape. Raises ValueError naming the keys that do not fit."""
    state = codec.read_weights(folder)
    codec.check_keys(folder, network.shapes(), {name: tuple(weight.shape) for name, weight in state.items()})
    network.load_state_dict(state)


def _cut(path: Path, step: int) -> Path:
    """Drop the lines of steps after `step` from an earlier run's figures."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))
    return path
