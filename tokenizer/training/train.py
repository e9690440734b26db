"""Training of the tokenizer: the loop, readable from top to bottom.

In:  the configuration, and a `ClipSource` that gives the batch of a step.
Out: RUN/tokenizer-metrics.jsonl, RUN/tokenizer-checkpoints/step-*/, and at the end the tokenizer folder `tokenizer.weights`.

Everything random (the training bucket, the dropped scales, the clips) is a function of (seed, step). A run that stops anywhere
and is started again therefore continues to the last digit at the same number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from cluster.config import ClusterConfig, Config, MetricsConfig, RunConfig
from cluster.config.precision import hardware, settle
from cluster.runtime.file_lock import hold_run
from cluster.runtime.job_protocol import DONE, STOPPED, StopRequest
from cluster.runtime.process_group import Ranks, connect, disconnect
from cluster.runtime.progress import ProgressBar
from tokenizer import codec
from tokenizer.config import TokenizerConfig, TokenizerTraining, TrainingBucket
from tokenizer.network.network import Network, pixels
from tokenizer.quantization.codec_spec import CodecSpec
from tokenizer.training import checkpoint
from tokenizer.training.autoencoder import Autoencoder
from tokenizer.training.engine import TrainingError
from tokenizer.training.run_logger import RunLogger
from tokenizer.training.schedule import bucket_at, depths_at, kept_scales_at, perceptual_frames_at
from tokenizer.training.trainer import Trainer, log

CHECKPOINTS = "tokenizer-checkpoints"
COLLECTIVE_TIMEOUT = 1800.0
"""Seconds that a rank waits for the others: DeepSpeed's default, long enough for a slow decode on one of them."""


class ClipSource(Protocol):
    """Where training clips come from: a pure function of the step."""

    def batch(self, step: int, bucket: TrainingBucket, rank: int, world: int) -> Tensor:
        """Return this rank's part of the global batch of `step`, uint8 (b,T,H,W,3)."""
        ...


def train(config: Config, clips: ClipSource) -> int:
    """Train the tokenizer of `config` from its newest checkpoint to its end, or to a request to stop. Returns the exit code.

    All ranks call this, in their main threads. Returns at once when `tokenizer.weights` already holds the result of this recipe.
    Raises TrainingError, CodecError, RunFolderError, OSError or what the clip source raises.
    """
    recipe = recipe_digest(config)
    if finished(config.get(TokenizerConfig).weights, recipe):
        return DONE
    stop = StopRequest(config.get(RunConfig).dir, 0)
    ranks = connect(COLLECTIVE_TIMEOUT)
    try:
        with ExitStack() as owned:
            lock = hold_run(config.get(RunConfig).dir)
            ranks.from_first(lambda: owned.enter_context(lock).path)
            return _run(config, clips, ranks, recipe, stop)
    finally:
        disconnect()


def _run(config: Config, clips: ClipSource, ranks: Ranks, recipe: str, stop: StopRequest) -> int:
    """Run the loop, from the newest checkpoint to the last step or to a request to stop. Returns the exit code."""
    tokenizer, run = config.get(TokenizerConfig), config.get(RunConfig)
    checkpoints = run.dir / CHECKPOINTS
    found = checkpoint.find(checkpoints, recipe, ranks, partial(log, ranks), recipe_values(config))
    tokenizer = settled(config, ranks, None if found is None else found[1].dtype)
    training = tokenizer.training
    torch.manual_seed(run.seed)
    model = Autoencoder(tokenizer)
    if training.init is not None:
        load_initial_weights(model.network, training.init)
    network = tokenizer.network
    spec = CodecSpec(network.bits, network.spatial_stride, network.temporal_stride, "", tokenizer.scales)
    trainer = Trainer(model, tokenizer, ranks)
    begin = trainer.resume(found)
    with ExitStack() as stack:
        logger = stack.enter_context(RunLogger(run.dir, ranks.first, config.get(MetricsConfig), begin, run.name))
        batches = stack.enter_context(BatchPrefetcher(clips, training, run.seed, ranks))
        bar = stack.enter_context(ProgressBar("tokenizer", training.steps, done=begin, enabled=ranks.first))
        for step in range(begin, training.steps):
            began = time.perf_counter()
            frames = batches.take(step)
            waited = time.perf_counter() - began
            bucket = bucket_at(step, training, run.seed)
            _, rows, columns = spec.grid(bucket.frames, bucket.height, bucket.width)
            scales = spec.scales(rows, columns)
            kept = kept_scales_at(step, len(scales), training, run.seed)
            depths = depths_at(step, bucket.batch, kept, training, run.seed)
            compared = perceptual_frames_at(step, bucket.frames, tokenizer.loss.perceptual_frames, run.seed)
            asked = stop.asked(step + 1)
            own = None if depths is None else torch.tensor(depths, device=ranks.device).chunk(ranks.world)[ranks.rank]
            clips_BCTHW = pixels(frames.to(ranks.device))
            metrics, stops = trainer.step(clips_BCTHW, scales, kept, step, compared, depth_B=own, stop=asked)
            if not math.isfinite(metrics["loss"]):
                raise TrainingError(
                    f"step {step + 1}: the loss is not finite; start again with a lower tokenizer.training.learning_rate "
                    f"(checkpoints are kept under {checkpoints})"
                )
            done = step + 1
            seconds = {"total": time.perf_counter() - began, "data": waited}
            name = f"f{bucket.frames:03d}x{bucket.height}x{bucket.width}"
            logger.log(
                {"step": done, "bucket": name, "clips": bucket.batch, **metrics, "seconds": seconds},
                write=done % training.log_every == 0 or done == training.steps,
            )
            if (stops or done % training.checkpoint_every == 0) and done < training.steps:
                trainer.save(checkpoints, done, recipe, recipe_values(config))
            bar.update(1, note=f"PSNR {metrics['psnr']:.1f} dB")
            if stops:
                _heeded(stop, ranks)
                if done < training.steps:
                    return _stopped(stop, ranks, done)
    trainer.export(
        tokenizer,
        {"recipe": recipe, "steps": training.steps, "dtype": training.dtype, "corpus": list(_corpus(config)["videos"])},
    )
    return DONE


def _heeded(stop: StopRequest, ranks: Ranks) -> None:
    """Remove the stop file, so that the next start goes on, and so does the next job in the same folder."""
    if ranks.first:
        stop.clear(lambda error: print(f"warning: {error}: remove it before the next start", file=sys.stderr, flush=True))


def _stopped(stop: StopRequest, ranks: Ranks, step: int) -> int:
    """Say why training ends here; return the exit code. All ranks call this."""
    why = "; ".join(sorted({reason for reason in ranks.all_gather(stop.reason) if reason}))
    log(ranks, f"stopped after step {step} ({why}); run the same command to continue")
    return STOPPED


def settled(config: Config, ranks: Ranks, recorded: str | None) -> TokenizerConfig:
    """Return the tokenizer section with a type in the place of `auto`: the recorded one, or else by the hardware of all ranks.

    All ranks call this. Raises DtypeError.
    """
    tokenizer, accept = config.get(TokenizerConfig), config.get(ClusterConfig).accept_slow_dtype
    found = ranks.all_gather(hardware(ranks.device.type))
    dtype = settle("tokenizer.training.dtype", tokenizer.training.dtype, found, recorded=recorded or "", accept=accept)
    log(ranks, dtype.line)
    return tokenizer.model_copy(update={"training": tokenizer.training.model_copy(update={"dtype": dtype.dtype})})


class BatchPrefetcher:
    """Decodes the batches of coming steps in threads while earlier steps train; a context manager."""

    def __init__(self, clips: ClipSource, training: TokenizerTraining, seed: int, ranks: Ranks) -> None:
        self._clips, self._training, self._seed, self._ranks = clips, training, seed, ranks
        self._threads = ThreadPoolExecutor(max_workers=training.workers, thread_name_prefix="clips")
        self._pending: dict[int, Future[Tensor]] = {}

    def take(self, step: int) -> Tensor:
        """Return this rank's batch of `step`, uint8 (b,T,H,W,3), and request the next ones. Raises what the source raised."""
        for soon in range(step, min(self._training.steps, step + self._training.workers + 1)):
            if soon not in self._pending:
                bucket = bucket_at(soon, self._training, self._seed)
                self._pending[soon] = self._threads.submit(self._clips.batch, soon, bucket, self._ranks.rank, self._ranks.world)
        return self._pending.pop(step).result()

    def __enter__(self) -> BatchPrefetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def recipe_digest(config: Config) -> str:
    """Return the sha256 of `recipe_values`."""
    return hashlib.sha256(json.dumps(recipe_values(config), sort_keys=True).encode()).hexdigest()


def recipe_values(config: Config) -> dict[str, Any]:
    """Return everything that determines the weights: tokenizer section (without its folder), corpus and seed.

    `auto` counts as float32, the default of earlier versions; which type it became is in the checkpoints and in tokenizer.json.
    """
    tokenizer = config.get(TokenizerConfig).model_dump(mode="json", exclude={"weights"})
    if tokenizer["training"]["dtype"] == "auto":
        tokenizer["training"]["dtype"] = "float32"
    for section, key, plain in (
        ("loss", "hardest", 1),
        ("training", "quantization_ramp", 0),
        ("training", "quantizer_dropout", 0),
    ):
        if tokenizer[section][key] == plain:
            del tokenizer[section][key]  # earlier versions had no such key
    return {"tokenizer": tokenizer, "corpus": _corpus(config), "seed": config.get(RunConfig).seed}


def _corpus(config: Config) -> dict[str, Any]:
    """Return the `corpus` section as plain values: its model belongs to the pipeline, which this package must not import."""
    corpus: dict[str, Any] = config.plain()["corpus"]
    return corpus


def finished(folder: Path, recipe: str) -> bool:
    """Return whether `folder` holds the tokenizer of this recipe. Raises TrainingError when it holds another one."""
    if not (folder / codec.JSON_NAME).exists():
        return False
    _, spec, provenance = codec.read_json(folder)
    if provenance.get("recipe") == recipe:
        print(f"tokenizer: {folder} is complete for this recipe (digest {spec.digest[:12]}); nothing to do", flush=True)
        return True
    raise TrainingError(
        f"{folder} holds a tokenizer of another recipe; set another tokenizer.weights, or remove the folder to train anew"
    )


def load_initial_weights(network: Network, folder: Path) -> None:
    """Start from a tokenizer folder of the same shape. Raises CodecError naming the weights that do not fit."""
    state = codec.read_weights(folder)
    codec.check_keys(folder, network.shapes(), {name: tuple(weight.shape) for name, weight in state.items()})
    network.load_state_dict(state)
