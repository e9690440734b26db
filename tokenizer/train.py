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
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from cluster.config import Config, RunConfig
from cluster.metrics import JsonLines
from cluster.progress import ProgressBar
from tokenizer import codec, losses
from tokenizer.bottleneck import Bottleneck, bottleneck
from tokenizer.config import LossConfig, TokenizerConfig, TrainingBucket
from tokenizer.discriminator import PatchDiscriminator
from tokenizer.engine import Engine, World, barrier, mean_over_ranks, start, stop
from tokenizer.network import Network, pixels
from tokenizer.perceptual import perceptual
from tokenizer.scales import Scales
from tokenizer.schedule import bucket_at, ema_at, keep_at, rate_at
from tokenizer.spec import CodecSpec

CHECKPOINTS = "tokenizer-checkpoints"
METRICS = "tokenizer-metrics.jsonl"


class TrainingError(RuntimeError):
    """A training that cannot go on; the message names the mend."""


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


class Autoencoder(nn.Module):
    """The network with the quantiser between its halves, as training runs it."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.network = Network(config.network)
        self.loss, self.dtype = config.loss, torch.bfloat16 if config.training.dtype == "bfloat16" else torch.float32

    def forward(self, x_BCTHW: Tensor, scales: Scales, keep: list[bool], quantized: bool) -> tuple[Tensor, Bottleneck]:
        """Reconstruction float32 (B,3,T,H,W) and the bottleneck; `quantized` false passes the features through as they are."""
        with torch.autocast(x_BCTHW.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.network.encoder(x_BCTHW)
        middle = bottleneck(
            features.float().transpose(1, 2).flatten(0, 1), scales, keep, self.loss.inverse_temperature, quantized
        )
        joined = middle.quantized.unflatten(0, (x_BCTHW.shape[0], -1)).transpose(1, 2)
        with torch.autocast(x_BCTHW.device.type, self.dtype, enabled=self.dtype != torch.float32):
            recon = self.network.decoder(joined.contiguous(memory_format=torch.channels_last_3d))
        return recon.float(), middle


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
    trainer = _Trainer(model, tokenizer, world)
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


class _Trainer:
    """Engines, moving averages and checkpoints of one run."""

    def __init__(self, model: Autoencoder, config: TokenizerConfig, world: World) -> None:
        self.loss: LossConfig = config.loss
        self.training, self.world = config.training, world
        self.perceptual = perceptual(config.loss.perceptual_net if config.loss.perceptual > 0 else "none", world.device)
        self.generator = Engine(model, config.training, world)
        self.discriminator: Engine | None = None
        if config.loss.gan > 0:
            judge = PatchDiscriminator(config.loss.discriminator_width)
            self.discriminator = Engine(judge, config.training, world)
        self.opinion = torch.zeros(2, device=world.device)
        self.ema: dict[str, Tensor] = {}
        if config.training.ema > 0:
            with self.generator.whole() as weights:
                self.ema = {name: weight.detach().clone() for name, weight in weights.items()}

    def step(self, x_BCTHW: Tensor, scales: Scales, keep: list[bool], step: int) -> dict[str, Any]:
        """One step of generator and, once it has started, discriminator; returns plain figures, equal on all ranks."""
        training, rate = self.training, rate_at(step, self.training)
        adversarial = self.discriminator is not None and step >= training.discriminator_start
        recon, middle = self.generator(x_BCTHW, scales, keep, step >= training.unquantized_steps)
        square = losses.square_loss(recon, x_BCTHW)
        terms = {
            "l1": losses.pixel_loss(recon, x_BCTHW),
            "l2": square,
            "commitment": middle.commitment,
            "entropy": middle.entropy,
        }
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(recon, x_BCTHW)
        if adversarial:
            assert self.discriminator is not None
            self.discriminator.module.requires_grad_(False)
            terms["gan"] = losses.generator_hinge(self.discriminator.module(recon))
        loss = losses.total(terms, self.loss)
        norm = self.generator.step(loss, rate)
        if self.ema:
            decay = ema_at(step, training)
            with self.generator.whole() as weights, torch.no_grad():
                for name, weight in weights.items():
                    self.ema[name].lerp_(weight.float(), 1 - decay)
        if adversarial:
            terms |= self._judge(x_BCTHW, recon.detach(), rate)
        names = ["loss", *terms]
        means = mean_over_ranks(torch.stack([loss.detach().float(), *(term.detach().float() for term in terms.values())]))
        figures: dict[str, Any] = dict(zip(names, means.tolist()))
        figures["psnr"] = 10 * math.log10(4 / max(figures["l2"], 1e-10)) if figures["l2"] == figures["l2"] else math.nan
        figures |= {"grad_norm": norm, "learning_rate": rate} | self._usage(middle, scales)
        return figures

    def _judge(self, real_BCTHW: Tensor, fake_BCTHW: Tensor, rate: float) -> dict[str, Tensor]:
        assert self.discriminator is not None
        self.discriminator.module.requires_grad_(True)
        real, fake = self.discriminator(torch.cat((real_BCTHW, fake_BCTHW))).chunk(2)
        hinge = losses.discriminator_hinge(real, fake)
        seen = mean_over_ranks(torch.stack((real.detach().mean(), fake.detach().mean())).float())
        self.opinion.lerp_(seen, 0.01)
        steady = losses.lecam(real, fake, self.opinion[0], self.opinion[1])
        self.discriminator.step(hinge + self.loss.lecam * steady, rate * self.training.discriminator_factor)
        return {"discriminator": hinge, "lecam": steady}

    def _usage(self, middle: Bottleneck, scales: Scales) -> dict[str, Any]:
        """Entropy in bits of the mean bit of each scale: 1 = both values used alike, 0 = a dead bit; None for a scale left out."""
        share = mean_over_ranks(middle.usage_Kd.float())
        safe = share.clamp(1e-6, 1 - 1e-6)
        entropy = -(safe * safe.log2() + (1 - safe) * (1 - safe).log2()).mean(1)
        return {"bit_entropy": {f"{r}x{c}": value for (r, c), value in zip(scales, entropy.tolist())}}

    def checkpoint(self, folder: Path, step: int, digest: str) -> None:
        """Write step-*/ with DONE last, then drop all but the newest two."""
        here = folder / f"step-{step:08d}"
        if self.world.first:
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir(parents=True)
        barrier()
        self.generator.save(here / "generator")
        if self.discriminator is not None:
            self.discriminator.module.requires_grad_(True)
            self.discriminator.save(here / "discriminator")
        if self.world.first:
            safetensors.torch.save_file({name: t.contiguous() for name, t in self.ema.items()}, here / "ema.safetensors")
            state = {"step": step, "recipe": digest, "ranks": self.world.size, "opinion": self.opinion.tolist()}
            (here / "state.json").write_text(json.dumps(state))
        barrier()
        if self.world.first:
            (here / "DONE").touch()
            for old in sorted(path for path in folder.glob("step-*") if (path / "DONE").exists())[:-2]:
                shutil.rmtree(old)

    def resume(self, folder: Path, digest: str) -> int:
        """Load the newest whole checkpoint of this recipe; returns the steps it holds, 0 when there is none."""
        whole = sorted(path for path in folder.glob("step-*") if (path / "DONE").exists())
        if not whole:
            return 0
        here = whole[-1]
        state = json.loads((here / "state.json").read_text())
        if state["recipe"] != digest:
            raise TrainingError(
                f"{here} belongs to another tokenizer recipe; name another run.dir, or remove {folder} to start anew"
            )
        if state["ranks"] != self.world.size:
            raise TrainingError(f"{here} was written by {state['ranks']} ranks; go on with as many, not with {self.world.size}")
        self.generator.load(here / "generator")
        if self.discriminator is not None:
            self.discriminator.load(here / "discriminator")
        for name, value in safetensors.torch.load_file(here / "ema.safetensors", device=self.world.device).items():
            self.ema[name].copy_(value)
        self.opinion = torch.tensor(state["opinion"], device=self.world.device)
        if self.world.first:
            print(f"tokenizer: resuming at step {state['step']} from {here}", flush=True)
        return int(state["step"])

    def finish(self, config: TokenizerConfig, provenance: Mapping[str, Any]) -> None:
        """Write the tokenizer folder (moving average when there is one); all ranks."""
        with self.generator.whole() as weights:
            final = {name.removeprefix("network."): weight for name, weight in (self.ema or weights).items()}
            if self.world.first:
                spec = codec.save(config.weights, config.network, final, provenance, config.scales)
                print(f"tokenizer: wrote {config.weights} (digest {spec.digest[:12]})", flush=True)
        barrier()


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
