"""Engines, moving averages and checkpoints of one tokenizer training run.

In:  the autoencoder, the tokenizer section, the world of ranks; then one batch a step.
Out: figures of a step; checkpoints step-*/ with DONE written last; at the end the tokenizer folder.
Called by: tokenizer/training/train.py.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tokenizer import codec
from tokenizer.config import LossConfig, TokenizerConfig
from tokenizer.evaluation.lpips import perceptual
from tokenizer.quantization.scale_schedule import Scales
from tokenizer.training import losses
from tokenizer.training.autoencoder import Autoencoder
from tokenizer.training.discriminator import PatchDiscriminator
from tokenizer.training.engine import Engine, World, barrier, mean_over_ranks
from tokenizer.training.schedule import ema_at, rate_at
from tokenizer.training.straight_through import Bottleneck


class TrainingError(RuntimeError):
    """A training that cannot go on; the message names the mend."""


class Trainer:
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

    def step(self, x_BCTHW: Tensor, scales: Scales, keep: list[bool], step: int, looked: list[int]) -> dict[str, Any]:
        """One step of generator and, once it has started, discriminator; returns plain figures, equal on all ranks.

        keep: scales that are used. looked: frames that the perceptual loss looks at.
        """
        training, rate = self.training, rate_at(step, self.training)
        adversarial = self.discriminator is not None and step >= training.discriminator_start
        parts = x_BCTHW.split(training.micro_batch or len(x_BCTHW))
        sums: dict[str, Tensor] = {}
        usage: list[Tensor] = []
        made: list[Tensor] = []
        norm = math.nan
        for part, x_bCTHW in enumerate(parts):
            share = len(x_bCTHW) / len(x_BCTHW)
            recon, middle = self.generator(x_bCTHW, scales, keep, step >= training.unquantized_steps)
            terms = self._terms(x_bCTHW, recon, middle, adversarial, looked)
            loss = losses.total(terms, self.loss)
            norm = self.generator.step(loss * share, rate, last=part + 1 == len(parts))
            _add(sums, {"loss": loss, **terms}, share)
            usage.append(middle.usage_Kd)
            made.append(recon.detach())
        self._average(step)
        if adversarial:
            for part, (real, fake) in enumerate(zip(parts, made)):
                _add(
                    sums,
                    self._judge(real, fake, len(real) / len(x_BCTHW), rate, part + 1 == len(parts)),
                    len(real) / len(x_BCTHW),
                )
        means = mean_over_ranks(torch.stack(list(sums.values())))
        figures: dict[str, Any] = dict(zip(sums, means.tolist()))
        figures["psnr"] = 10 * math.log10(4 / max(figures["l2"], 1e-10)) if figures["l2"] == figures["l2"] else math.nan
        return figures | {"grad_norm": norm, "learning_rate": rate} | self._usage(torch.stack(usage).mean(0), scales)

    def _terms(
        self, x_BCTHW: Tensor, recon: Tensor, middle: Bottleneck, adversarial: bool, looked: list[int]
    ) -> dict[str, Tensor]:
        terms = {
            "l1": losses.pixel_loss(recon, x_BCTHW),
            "l2": losses.square_loss(recon, x_BCTHW),
            "commitment": middle.commitment,
            "entropy": middle.entropy,
        }
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(recon[:, :, looked], x_BCTHW[:, :, looked])
        if adversarial:
            assert self.discriminator is not None
            self.discriminator.module.requires_grad_(False)
            terms["gan"] = losses.generator_hinge(self.discriminator.module(recon))
        return terms

    def _average(self, step: int) -> None:
        if not self.ema:
            return
        decay = ema_at(step, self.training)
        with self.generator.whole() as weights, torch.no_grad():
            for name, weight in weights.items():
                self.ema[name].lerp_(weight.float(), 1 - decay)

    def _judge(self, real_BCTHW: Tensor, fake_BCTHW: Tensor, share: float, rate: float, last: bool) -> dict[str, Tensor]:
        assert self.discriminator is not None
        self.discriminator.module.requires_grad_(True)
        real, fake = self.discriminator(torch.cat((real_BCTHW, fake_BCTHW))).chunk(2)
        hinge = losses.discriminator_hinge(real, fake)
        seen = mean_over_ranks(torch.stack((real.detach().mean(), fake.detach().mean())).float())
        self.opinion.lerp_(seen, 0.01)
        steady = losses.lecam(real, fake, self.opinion[0], self.opinion[1])
        loss = (hinge + self.loss.lecam * steady) * share
        self.discriminator.step(loss, rate * self.training.discriminator_factor, last=last)
        return {"discriminator": hinge, "lecam": steady}

    def _usage(self, usage_Kd: Tensor, scales: Scales) -> dict[str, Any]:
        """Entropy in bits of the mean bit of each scale: 1 = both values used alike, 0 = a dead bit; None for a scale left out."""
        share = mean_over_ranks(usage_Kd.float())
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


def _add(sums: dict[str, Tensor], terms: Mapping[str, Tensor], share: float) -> None:
    for name, term in terms.items():
        sums[name] = sums.get(name, torch.zeros((), device=term.device)) + term.detach().float() * share
