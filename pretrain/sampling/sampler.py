"""The sampler: one forward of the transformer for each scale of each frame, over cached keys and values.

In:  a model, captions, the latent grid, and for continuation the bits of a prefix.
Out: packed bits of whole clips; or one scale after the other, so that frames can be decoded while the next ones are sampled.

Legend: B captions, R rows of a forward (B, or 2 B under guidance: with condition, then without), P text tokens, K scales, d bits
per token, S tokens of the scale being sampled, L tokens of a forward, C model width, H x W the latent grid.

The first forward takes the text, the whole prefix and the first scale to sample; each later forward takes one scale. A clip thus
costs (frames - prefix) x K forwards whatever the captions are, so ranks that sample together under ZeRO-3 stay in step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.runtime.progress import ProgressBar
from pretrain.model.attention import Mask, bind_mask
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.token_layout import Layout
from pretrain.model.transformer import VideoAR
from pretrain.objective import counter_rng
from pretrain.objective.teacher_forcing import corrected_labels, resize, token_inputs
from pretrain.sampling import guidance
from pretrain.sampling.guidance import SampleConfig
from pretrain.sampling.kv_cache import KVCache
from tokenizer.quantization.bit_packing import pack, unpack
from tokenizer.quantization.bsq import codes, resize_linear
from tokenizer.quantization.codec_spec import CodecSpec


class SampleError(ValueError):
    """A request that cannot be sampled; the message says how to change it."""


@dataclass(frozen=True)
class SampledScale:
    """One scale of one frame, for all captions."""

    frame: int
    scale: int
    logits: Tensor
    """float32 (B, S, d): with guidance, before the temperature."""
    bits: Tensor
    """bool (B, rows, columns, d)."""


@dataclass(frozen=True)
class Sampler:
    """A model with all that its samples depend on beside the request."""

    model: VideoAR
    spec: CodecSpec
    text: TextTokenizer
    config: SampleConfig

    @torch.no_grad()
    def sample(
        self,
        captions: Sequence[str],
        grid: tuple[int, int, int],
        *,
        seed: int,
        prefix: Tensor | None = None,
        window: int = 0,
        progress: ProgressBar | None = None,
    ) -> Tensor:
        """Return packed bits uint8 (B, frames * frame_bytes), the prefix included, on the model's device.

        captions: an empty one is sampled without a condition. grid: latent frames, rows, columns. prefix: uint8
        (B, n * frame_bytes) with n < frames. window: latent frames of history that a frame sees, 0 = all (as in training).
        progress: advanced once per forward. Sample i depends on (seed, i) only.
        Raises SampleError or TextError for a request that cannot be met.
        """
        frames: list[Tensor] = [] if prefix is None else [prefix.to(self.model.start.weight.device)]
        maps: list[Tensor] = []
        for step in self.steps(captions, grid, seed=seed, prefix=prefix, window=window):
            maps.append(step.bits)
            if progress is not None:
                progress.update()
            if step.scale + 1 == len(self.spec.scales(*grid[1:])):
                frames.append(pack(maps))
                maps = []
        return torch.cat(frames, dim=1)

    @torch.no_grad()
    def steps(
        self,
        captions: Sequence[str],
        grid: tuple[int, int, int],
        *,
        seed: int,
        first: int = 0,
        prefix: Tensor | None = None,
        window: int = 0,
    ) -> Iterator[SampledScale]:
        """Yield the scales of a clip in order; arguments as for `sample`. first: number of the first caption."""
        model, spec, mode = self.model, self.spec, self.model.config.input_resize
        frames, scales, count = grid[0], spec.scales(*grid[1:]), len(captions)
        device = model.start.weight.device
        known = 0 if prefix is None else self._prefix_frames(prefix, grid, count)
        if len(scales) > model.config.max_scales:
            raise SampleError(
                f"grid {grid[1]}x{grid[2]} has {len(scales)} scales, model.max_scales is {model.config.max_scales}"
            )
        text_RP, length_R = (item.to(device) for item in self.conditions(captions))
        is_guided = text_RP.shape[0] > count
        layout = Layout(text_RP.shape[1], frames, scales)
        positions_RL3 = model.positions(layout, length_R)
        scale_N = layout.tokens().scale[layout.text :].to(device)
        cache = KVCache(model.config, layout, length_R, window, model.dtype)
        seeds_B = counter_rng.fold(torch.arange(first, first + count, device=device), seed)
        total_BdHW = torch.zeros(count, spec.bits, *scales[-1], device=device)
        prefix_inputs = torch.zeros(count, 0, spec.bits, device=device)
        if prefix is not None:
            bits = unpack(prefix.to(device).reshape(count * known, -1), scales, spec.bits)
            _, inputs, final = corrected_labels(bits, scales, mode=mode)
            prefix_inputs = token_inputs(inputs, final, known, scales, mode)
            total_BdHW = final.view(count, known, *final.shape[1:])[:, -1]

        for frame in range(known, frames):
            previous_BdHW, total_BdHW = total_BdHW, torch.zeros_like(total_BdHW)
            for scale, (rows, columns) in enumerate(scales):
                source = previous_BdHW if scale == 0 else total_BdHW
                inputs_BSd = resize(source, (rows, columns), mode).flatten(2).transpose(1, 2)
                begin, end = layout.span(frame, scale)
                is_first = frame == known and scale == 0
                if is_first:
                    inputs_BSd, begin = torch.cat((prefix_inputs, inputs_BSd), dim=1), 0
                    mask = Mask((layout.cut(frame + 1, last=1),), length_R.unsqueeze(1), window)
                    attend = cache.prefill(bind_mask(model.config.attention, mask), frame)
                else:
                    attend = cache.step(frame, scale)
                x_RLC = model.embed(
                    text_RP if is_first else text_RP[:, :0],
                    inputs_BSd.repeat(2, 1, 1) if is_guided else inputs_BSd,
                    scale_N[max(0, begin - layout.text) : end - layout.text],
                    starts=is_first,
                )
                hidden_RLC = model(x_RLC, positions_RL3[:, begin:end], attend)
                logits = model.head(hidden_RLC[:, -rows * columns :])[0]
                if is_guided:
                    logits = guidance.guided(logits, guidance.strength(self.config, frame, frames, scale, len(scales)))
                bits_BSd = self._draw(logits, counter_rng.fold(seeds_B, frame * len(scales) + scale))
                chosen = bits_BSd.unflatten(1, (rows, columns))
                total_BdHW = total_BdHW + resize_linear(codes(chosen), scales[-1])
                yield SampledScale(frame, scale, logits, chosen)

    def conditions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return text (R, P) and its lengths (R): the captions, and as many null rows if any step is guided."""
        if not captions:
            raise SampleError("no caption: name at least one (an empty one samples without a condition)")
        is_guided, has_null = guidance.needed(self.config), self.model.config.null_token
        if is_guided and not has_null:
            raise SampleError(
                "guidance needs a null token and this model has none: set sample.guidance=[1,1] sample.guidance_end=1"
            )
        text, length = self.text.batch(captions, refuse=True)
        if not has_null:
            return text, length
        text[length == 0, 0] = self.model.null
        length = length.clamp(min=1)
        if is_guided:
            null = torch.zeros_like(text)
            null[:, 0] = self.model.null
            text, length = torch.cat((text, null)), torch.cat((length, torch.ones_like(length)))
        return text, length

    def _draw(self, logits_BSd: Tensor, seeds_B: Tensor) -> Tensor:
        """Return bits, bool (B, S, d), drawn at the configured temperature."""
        drawn = counter_rng.uniform(seeds_B, counter_rng.SAMPLE, logits_BSd.shape[1:])
        temperature = self.config.temperature
        return drawn < (logits_BSd / temperature).sigmoid() if temperature > 0 else logits_BSd > 0

    def _prefix_frames(self, prefix: Tensor, grid: tuple[int, int, int], captions: int) -> int:
        """Return the latent frames of a prefix. Raises SampleError if it does not fit the request."""
        frames, rows, columns = grid
        size = self.spec.frame_bytes(rows, columns)
        if prefix.ndim != 2 or prefix.shape[0] != captions or prefix.shape[1] % size or not prefix.shape[1]:
            raise SampleError(
                f"prefix of shape {tuple(prefix.shape)}: {captions} captions on a {rows}x{columns} grid take "
                f"({captions}, n * {size}) bytes"
            )
        known = prefix.shape[1] // size
        if known >= frames:
            raise SampleError(f"the prefix has {known} latent frames, the clip {frames}: ask for more frames")
        return known


def forwards(frames: int, scales: int, prefix: int = 0) -> int:
    """Return how many forwards of the transformer a clip takes."""
    return (frames - prefix) * scales
