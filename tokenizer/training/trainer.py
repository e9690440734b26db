"""One run's engines, moving average and checkpoints: what a training step does to them.

In:  the autoencoder, the tokenizer section, the ranks; then one batch per step.
Out: metrics of each step; checkpoints; at the end the tokenizer folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from cluster.runtime.process_group import Ranks
from tokenizer import codec
from tokenizer.config import LossConfig, TokenizerConfig
from tokenizer.evaluation.lpips import perceptual
from tokenizer.quantization.scale_schedule import Scales
from tokenizer.training import checkpoint, losses
from tokenizer.training.autoencoder import Autoencoder, Bottleneck
from tokenizer.training.checkpoint import TrainState
from tokenizer.training.discriminator import PatchDiscriminator
from tokenizer.training.engine import ZeroEngine
from tokenizer.training.schedule import ema_decay_at, learning_rate_at, quantized_share_at

MEAN_LOGITS_RATE = 0.01
"""Weight of a step's logits in the moving means that LeCAM compares with."""


class Trainer:
    """Generator and discriminator of one run, with all state that a checkpoint holds. All ranks make the same calls."""

    def __init__(self, model: Autoencoder, config: TokenizerConfig, ranks: Ranks) -> None:
        self.loss: LossConfig = config.loss
        self.training, self.ranks = config.training, ranks
        self.perceptual = perceptual(config.loss.perceptual_net if config.loss.perceptual > 0 else "none", ranks.device)
        self.generator = ZeroEngine(model, config.training, ranks)
        self.discriminator: ZeroEngine | None = None
        if config.loss.gan > 0:
            self.discriminator = ZeroEngine(PatchDiscriminator(config.loss.discriminator_width), config.training, ranks)
        self.mean_logits = torch.zeros(2, device=ranks.device)
        self.ema: dict[str, Tensor] = {}
        if config.training.ema > 0:
            with self.generator.whole() as weights:
                self.ema = {name: weight.detach().clone() for name, weight in weights.items()}

    # One step ---------------------------------------------------------------------------------------------------------------

    def step(
        self,
        x_BCTHW: Tensor,
        scales: Scales,
        kept: list[bool],
        step: int,
        frames: list[int],
        *,
        depth_B: Tensor | None = None,
        stop: bool = False,
    ) -> tuple[dict[str, Any], bool]:
        """Update the generator and, once it has started, the discriminator.

        kept: which scales are used. frames: those that the perceptual loss compares. depth_B: after how many scales each clip's quantizer stops,
        None for no clip. stop: whether this rank was asked to stop.
        Returns metrics that are equal on all ranks, and whether any rank was asked to stop.
        """
        training, rate = self.training, learning_rate_at(step, self.training)
        quantized = quantized_share_at(step, training)
        adversarial = self.discriminator is not None and step >= training.discriminator_start
        micro_batches = x_BCTHW.split(training.micro_batch or len(x_BCTHW))
        sums: dict[str, Tensor] = {}
        usage: list[Tensor] = []
        reconstructions: list[Tensor] = []
        norm = math.nan
        for number, x_bCTHW in enumerate(micro_batches):
            share = len(x_bCTHW) / len(x_BCTHW)
            depth_b = None if depth_B is None else depth_B[len(reconstructions) * len(micro_batches[0]) :][: len(x_bCTHW)]
            recon, middle = self.generator(x_bCTHW, scales, kept, quantized, depth_b)
            pixels = losses.pixel_losses(recon, x_bCTHW, self.loss.hardest)
            square = pixels.pop("square")
            terms = pixels | self._generator_terms(x_bCTHW, recon, middle, adversarial, frames)
            loss = losses.total(terms, self.loss)
            norm = self.generator.step(loss * share, rate, last=number + 1 == len(micro_batches))
            _add(sums, {"loss": loss, "square": square, **terms}, share)
            usage.append(middle.usage_Kd)
            reconstructions.append(recon.detach())
        self._update_ema(step)
        if adversarial:
            for number, (real, fake) in enumerate(zip(micro_batches, reconstructions)):
                share = len(real) / len(x_BCTHW)
                last = number + 1 == len(micro_batches)
                _add(sums, self._discriminator_step(real, fake, share, rate, last=last), share)
        sums["stop"] = next(iter(sums.values())).new_tensor(float(stop))
        means = self.ranks.mean(torch.stack(list(sums.values())))
        metrics: dict[str, Any] = dict(zip(sums, means.tolist()))
        stops = metrics.pop("stop") > 0
        square = metrics.pop("square")
        metrics["psnr"] = 10 * math.log10(4 / max(square, 1e-10)) if square == square else math.nan
        metrics["quantized"] = quantized
        metrics |= {"grad_norm": norm, "learning_rate": rate} | self._bit_entropy(torch.stack(usage), scales)
        return metrics, stops

    def _generator_terms(
        self, x_BCTHW: Tensor, recon: Tensor, middle: Bottleneck, adversarial: bool, frames: list[int]
    ) -> dict[str, Tensor]:
        terms = {
            "commitment": middle.commitment,
            "entropy": middle.entropy,
        }
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(recon[:, :, frames], x_BCTHW[:, :, frames])
        if adversarial:
            assert self.discriminator is not None
            self.discriminator.module.requires_grad_(False)
            terms["gan"] = losses.generator_hinge(self.discriminator.module(recon))
        return terms

    def _update_ema(self, step: int) -> None:
        if not self.ema:
            return
        decay = ema_decay_at(step, self.training)
        with self.generator.whole() as weights, torch.no_grad():
            for name, weight in weights.items():
                self.ema[name].lerp_(weight.float(), 1 - decay)

    def _discriminator_step(
        self, real_BCTHW: Tensor, fake_BCTHW: Tensor, share: float, rate: float, *, last: bool
    ) -> dict[str, Tensor]:
        assert self.discriminator is not None
        self.discriminator.module.requires_grad_(True)
        real, fake = self.discriminator(torch.cat((real_BCTHW, fake_BCTHW))).chunk(2)
        hinge = losses.discriminator_hinge(real, fake)
        means = self.ranks.mean(torch.stack((real.detach().mean(), fake.detach().mean())).float())
        self.mean_logits.lerp_(means, MEAN_LOGITS_RATE)
        lecam = losses.lecam(real, fake, self.mean_logits[0], self.mean_logits[1])
        loss = (hinge + self.loss.lecam * lecam) * share
        self.discriminator.step(loss, rate * self.training.discriminator_factor, last=last)
        return {"discriminator": hinge, "lecam": lecam}

    def _bit_entropy(self, usage_MKd: Tensor, scales: Scales) -> dict[str, Any]:
        """Entropy in bits of each scale's mean bit: 1 = both values equally often, 0 = dead bits, None = scale dropped.

        usage_MKd: of each micro-batch, NaN where none of its frames used the scale.
        """
        summed, counted = self.ranks.mean(torch.stack((usage_MKd.float().nan_to_num(), (~usage_MKd.isnan()).float())).sum(1))
        share = summed / counted
        safe = share.clamp(1e-6, 1 - 1e-6)
        entropy = -(safe * safe.log2() + (1 - safe) * (1 - safe).log2()).mean(1)
        return {"bit_entropy": {f"{r}x{c}": value for (r, c), value in zip(scales, entropy.tolist())}}

    # Its state ---------------------------------------------------------------------------------------------------------------

    def save(self, root: Path, step: int, recipe: str, values: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step` finished steps. values: what the recipe is the digest of."""
        tensors = {"generator": self.generator.full_state()}
        if self.discriminator is not None:
            self.discriminator.module.requires_grad_(True)  # ZeRO-3 returns no state of frozen parameters
            tensors["discriminator"] = self.discriminator.full_state()
        tensors["ema"] = {name: value.contiguous() for name, value in self.ema.items()}
        real, fake = self.mean_logits.tolist()
        state = TrainState(step, recipe, self.ranks.world, (real, fake), values, self.training.dtype)
        self.ranks.from_first(lambda: checkpoint.write(root, state, tensors, self.log))

    def resume(self, found: tuple[Path, TrainState] | None) -> int:
        """Load the checkpoint that checkpoint.find found; return how many steps it has finished, 0 when there is none."""
        if found is None:
            return 0
        folder, state = found
        checkpoint.load_engine(self.generator, folder, "generator", state)
        if self.discriminator is not None:
            checkpoint.load_engine(self.discriminator, folder, "discriminator", state)
        for name, value in safetensors.torch.load_file(folder / "ema.safetensors", device=str(self.ranks.device)).items():
            self.ema[name].copy_(value)
        self.mean_logits = torch.tensor(state.mean_logits, device=self.ranks.device)
        self.log(f"resuming at step {state.step} from {folder}")
        return state.step

    def export(self, config: TokenizerConfig, provenance: Mapping[str, Any]) -> None:
        """Write the tokenizer folder, of the moving average when there is one."""
        with self.generator.whole() as weights:
            final = {name.removeprefix("network."): weight for name, weight in (self.ema or weights).items()}

            def write() -> None:
                spec = codec.save(config.weights, config.network, final, provenance, config.scales)
                self.log(f"wrote {config.weights} (digest {spec.digest[:12]})")

            self.ranks.from_first(write)

    def log(self, text: str) -> None:
        """Print one line, on the first rank."""
        log(self.ranks, text)


def log(ranks: Ranks, text: str) -> None:
    """Print one line, on the first rank."""
    if ranks.first:
        print(f"tokenizer: {text}", flush=True)


def _add(sums: dict[str, Tensor], terms: Mapping[str, Tensor], share: float) -> None:
    for name, term in terms.items():
        sums[name] = sums.get(name, torch.zeros((), device=term.device)) + term.detach().float() * share
