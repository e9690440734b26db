"""Training of the tokenizer: the loop, readable from top to bottom.

In:  the configuration, and a `ClipSource` that gives the batch of a step.
Out: figures (journal.py), RUN/tokenizer-checkpoints/step-*/, and at the end the tokenizer folder `tokenizer.weights`.
Called by: pipeline/tokenizer_jobs/main.py, which runs under the deepspeed launcher (or as one process).

All draws are functions of (seed, step): the bucket, the scales left out, the clips. So a run that stops anywhere and is
started again goes on to the last digit at the same number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from cluster.config import Config, MetricsConfig, RunConfig
from cluster.runtime.progress import ProgressBar
from tokenizer import codec
from tokenizer.config import TokenizerConfig, TokenizerTraining, TrainingBucket
from tokenizer.network.network import Network, pixels
from tokenizer.quantization.codec_spec import CodecSpec
from tokenizer.training.autoencoder import Autoencoder
from tokenizer.training.engine import World, start, stop
from tokenizer.training.run_logger import Journal
from tokenizer.training.schedule import bucket_at, keep_at, looked_at
from tokenizer.training.trainer import Trainer, TrainingError

CHECKPOINTS = "tokenizer-checkpoints"


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
    digest = recipe_digest(config)
    if finished(config.get(TokenizerConfig).weights, digest):
        return
    world = start()
    try:
        _run(config, clips, world, digest)
    finally:
        stop()


def _run(config: Config, clips: ClipSource, world: World, digest: str) -> None:
    """The loop."""
    tokenizer, run = config.get(TokenizerConfig), config.get(RunConfig)
    training = tokenizer.training
    torch.manual_seed(run.seed)
    model = Autoencoder(tokenizer)
    if training.init is not None:
        load_init(model.network, training.init)
    spec = CodecSpec(
        tokenizer.network.bits, tokenizer.network.spatial_stride, tokenizer.network.temporal_stride, "", tokenizer.scales
    )
    trainer = Trainer(model, tokenizer, world)
    begin = trainer.resume(run.dir / CHECKPOINTS, digest)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(run.dir, world.first, config.get(MetricsConfig), begin))
        batches = stack.enter_context(Ahead(clips, training, run.seed, world))
        bar = stack.enter_context(ProgressBar("tokenizer", training.steps, done=begin, enabled=world.first))
        for step in range(begin, training.steps):
            began = time.perf_counter()
            frames = batches.take(step)
            waited = time.perf_counter() - began
            bucket = bucket_at(step, training, run.seed)
            _, rows, columns = spec.grid(bucket.frames, bucket.height, bucket.width)
            scales = spec.scales(rows, columns)
            keep = keep_at(step, len(scales), training, run.seed)
            looked = looked_at(step, bucket.frames, tokenizer.loss.perceptual_frames, run.seed)
            figures = trainer.step(pixels(frames.to(world.device)), scales, keep, step, looked)
            if not math.isfinite(figures["loss"]):
                raise TrainingError(
                    f"step {step + 1}: the loss is not finite; start again with a lower tokenizer.training.learning_rate "
                    f"(checkpoints are kept under {run.dir / CHECKPOINTS})"
                )
            done = step + 1
            seconds = {"total": time.perf_counter() - began, "data": waited}
            name = f"f{bucket.frames:03d}x{bucket.height}x{bucket.width}"
            journal.step(
                {"step": done, "bucket": name, "clips": bucket.batch, **figures, "seconds": seconds},
                write=done % training.log_every == 0 or done == training.steps,
            )
            if done % training.checkpoint_every == 0 and done < training.steps:
                trainer.checkpoint(run.dir / CHECKPOINTS, done, digest)
            bar.update(1, note=f"PSNR {figures['psnr']:.1f} dB")
    provenance = {"recipe": digest, "steps": training.steps, "corpus": list(config.plain()["corpus"]["videos"])}
    trainer.finish(tokenizer, provenance)


class Ahead:
    """Batches that are decoded in threads while earlier steps train; context manager."""

    def __init__(self, clips: ClipSource, training: TokenizerTraining, seed: int, world: World) -> None:
        self._clips, self._training, self._seed, self._world = clips, training, seed, world
        self._threads = ThreadPoolExecutor(max_workers=training.workers, thread_name_prefix="clips")
        self._ahead: dict[int, Future[Tensor]] = {}

    def take(self, step: int) -> Tensor:
        """This rank's batch of `step`, uint8 (b,T,H,W,3); asks for the next ones. Raises what the source raised."""
        for soon in range(step, min(self._training.steps, step + self._training.workers + 1)):
            if soon not in self._ahead:
                shape = bucket_at(soon, self._training, self._seed)
                self._ahead[soon] = self._threads.submit(self._clips.batch, soon, shape, self._world.rank, self._world.size)
        return self._ahead.pop(step).result()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


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
