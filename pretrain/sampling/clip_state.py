"""A clip in the making, all of whose shapes are known before its first token: every tensor that a step reads or keeps stays put.

In:  the request, copied into buffers: text ids and lengths, seeds, bits of a prefix.
Out: the scales of one latent frame after another, and each frame's packed bits in a buffer.

Legend: B captions, R rows of a forward (B, or 2 B under guidance: with condition, then without), P text tokens, K scales, d bits
per token, F values that a token is fed (model.previous_frame), S tokens of the scale being sampled, L tokens of a clip, C model width,
H x W the latent grid.

The first forward takes the text, the whole prefix and the first scale to sample; each later forward takes one scale, or one token if
the model predicts token by token (model.order). A step reads nothing back to the host and makes no tensor from host values, so the same
code runs eagerly and is recorded by CUDA graphs (clip_graphs.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.attention.token_layout import Layout
from pretrain.model.transformer import VideoAR, fed_values
from pretrain.objective import counter_rng
from pretrain.objective.teacher_forcing import corrected_labels, resize, shifted_codes, token_inputs
from pretrain.sampling import guidance
from pretrain.sampling.guidance import SampleConfig
from pretrain.sampling.kv_cache import KVCache
from tokenizer.quantization.bit_packing import pack, unpack
from tokenizer.quantization.bsq import codes, resize_linear
from tokenizer.quantization.scale_schedule import Scales


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
class ClipShape:
    """What the shapes of a clip's tensors, and the work of its steps, depend on beside the model and the section `sample`."""

    captions: int
    """B."""
    rows: int
    """R."""
    text: int
    """P, padding included."""
    frames: int
    """Latent frames, the prefix included."""
    scales: Scales
    known: int
    """Latent frames of the prefix."""
    window: int
    """Latent frames of history that a frame sees; 0 = all."""

    @property
    def layout(self) -> Layout:
        """The tokens of the clip."""
        return Layout(self.text, self.frames, self.scales)


class ClipState:
    """The tensors of a clip. `load` a request, then run `frame` for each frame after the prefix, in order."""

    def __init__(self, model: VideoAR, config: SampleConfig, shape: ClipShape) -> None:
        self.model, self.config, self.shape, self.layout = model, config, shape, shape.layout
        self._by_token = model.config.order == "tokens"
        self._steps = self.layout.by_token() if self._by_token else self.layout
        device, bits, scales = model.start.weight.device, model.bits, shape.scales
        self._device = device
        self._text_RP = torch.zeros(shape.rows, shape.text, dtype=torch.int64, device=device)
        self._seeds_B = torch.zeros(shape.captions, dtype=torch.int64, device=device)
        self._positions_RL3 = torch.zeros(shape.rows, self.layout.length, 3, device=device)
        self._scale_N = self.layout.scale_of(device)
        self._every = model.config.previous_frame == "every_scale"
        self._prefix_BNF = torch.zeros(
            shape.captions, shape.known * self.layout.frame, fed_values(model.config, bits), device=device
        )
        self._start_BdHW, self._total_BdHW = (torch.zeros(shape.captions, bits, *scales[-1], device=device) for _ in range(2))
        self._children_FK = counter_rng.child_keys(range(shape.frames * len(scales))).to(device).view(shape.frames, -1)
        self._last_Bd = torch.zeros(shape.captions, bits, device=device)
        self._cache = KVCache(model.config, self._steps, shape.rows, shape.window, model.dtype, device)
        self._code_2 = codes(torch.tensor([False, True]).view(2, 1, 1, 1).expand(2, 1, 1, bits))[:, 0, 0, 0].to(device)
        frame_bytes = self.layout.frame * bits // 8
        self.packed = torch.zeros(shape.frames, shape.captions, frame_bytes, dtype=torch.uint8, device=device)
        """Packed bits of each frame made, uint8 (frames, B, frame_bytes)."""

    @torch.no_grad()
    def load(self, text_RP: Tensor, length_R: Tensor, seeds_B: Tensor, prefix: Tensor | None) -> None:
        """Copy a request into the buffers. prefix: packed bits uint8 (B, known * frame_bytes)."""
        shape, model, scales = self.shape, self.model, self.shape.scales
        length_R = length_R.to(self._device)
        self._text_RP.copy_(text_RP)
        self._seeds_B.copy_(seeds_B)
        self._positions_RL3.copy_(model.positions(self.layout, length_R))
        self._cache.set_text(length_R)
        if prefix is not None:
            mode = model.config.input_resize
            bits = unpack(prefix.to(self._device).reshape(shape.captions * shape.known, -1), scales, model.bits)
            if self._by_token:
                self._prefix_BNF.copy_(shifted_codes(bits, shape.known))
                self._last_Bd.copy_(codes(bits[-1][shape.known - 1 :: shape.known, -1:, -1:])[:, :, 0, 0])
                return
            _, inputs, final = corrected_labels(bits, scales, mode=mode)
            self._prefix_BNF.copy_(token_inputs(inputs, final, shape.known, scales, mode, previous=self._every))
            self._start_BdHW.copy_(final.view(shape.captions, shape.known, *final.shape[1:])[:, -1])

    @torch.no_grad()
    def frame(self, frame: int) -> Iterator[SampledScale]:
        """Run the steps of one frame; yield its scales, and after the last one keep what the next frame begins from."""
        if self._by_token:
            yield from self._frame_by_token(frame)
            return
        scales, mode = self.shape.scales, self.model.config.input_resize
        self._cache.begin(frame)
        drawn_BKN = self._draws(frame)
        total_BdHW = before_BdHW = self._start_BdHW if frame == self.shape.known else self._total_BdHW
        maps: list[Tensor] = []
        for scale, (rows, columns) in enumerate(scales):
            fed = (total_BdHW, before_BdHW) if self._every else (total_BdHW,)
            inputs_BSF = torch.cat([resize(each, (rows, columns), mode) for each in fed], dim=1).flatten(2).transpose(1, 2)
            logits = self._guided(self._forward(frame, scale, inputs_BSF), frame, scale)
            bits_BSd = self._sampled(logits, drawn_BKN[:, scale], scale)
            maps.append(bits_BSd.unflatten(1, (rows, columns)))
            code_Bdhw = torch.where(maps[-1].permute(0, 3, 1, 2), self._code_2[1], self._code_2[0])
            added_BdHW = resize_linear(code_Bdhw, scales[-1])
            total_BdHW = added_BdHW if scale == 0 else total_BdHW + added_BdHW
            yield SampledScale(frame, scale, logits, maps[-1])
        self._total_BdHW.copy_(total_BdHW)
        self.packed[frame].copy_(pack(maps))

    def _frame_by_token(self, frame: int) -> Iterator[SampledScale]:
        """Run the steps of one frame, each of one token, which is fed the code of the token before it; yield its scales."""
        self._cache.begin(frame)
        drawn_BKN = self._draws(frame)
        maps: list[Tensor] = []
        step = 0
        for scale, (rows, columns) in enumerate(self.shape.scales):
            logits: list[Tensor] = []
            bits: list[Tensor] = []
            for place in range(0, rows * columns * self.model.bits, self.model.bits):
                logits.append(self._guided(self._forward(frame, step, self._last_Bd.unsqueeze(1)), frame, scale))
                bits.append(self._sampled(logits[-1], drawn_BKN[:, scale, place:], scale))
                self._last_Bd.copy_(torch.where(bits[-1][:, 0], self._code_2[1], self._code_2[0]))
                step += 1
            maps.append(torch.cat(bits, dim=1).unflatten(1, (rows, columns)))
            yield SampledScale(frame, scale, torch.cat(logits, dim=1), maps[-1])
        self.packed[frame].copy_(pack(maps))

    def _sampled(self, logits_BSd: Tensor, drawn_BN: Tensor, scale: int) -> Tensor:
        """Return bits (B, S, d). drawn_BN: uniform numbers, of which the first S d are used."""
        temperature = guidance.temperature(self.config, scale, len(self.shape.scales))
        if temperature == 0:
            return logits_BSd > 0
        drawn_BSd = drawn_BN[:, : logits_BSd[0].numel()].view(logits_BSd.shape)
        return drawn_BSd < (logits_BSd / temperature).sigmoid()

    def _forward(self, frame: int, step: int, inputs_BSF: Tensor) -> Tensor:
        """Return logits, float32 (R, S, d). step: the number of a scale, or of a token."""
        model, layout, copies = self.model, self._steps, self.shape.rows // self.shape.captions
        begin, end = layout.span(frame, step)
        if frame == self.shape.known and step == 0:
            inputs_RNF = torch.cat((self._prefix_BNF, inputs_BSF), dim=1).repeat(copies, 1, 1)
            x_RLC = model.embed(self._text_RP, inputs_RNF, self._scale_N[: end - layout.text], starts=True)
            positions_RL3, attend = self._positions_RL3[:, :end], self._cache.prefill(frame)
        else:
            x_RLC = model.word(inputs_BSF.to(model.dtype))
            if model.scale is not None:
                x_RLC = x_RLC + model.scale(self._scale_N[begin - layout.text : end - layout.text])
            if copies > 1:
                x_RLC = x_RLC.repeat(copies, 1, 1)
            positions_RL3, attend = self._positions_RL3[:, begin:end], self._cache.step(frame, step)
        hidden_RLC = model(x_RLC, positions_RL3, attend)
        logits: Tensor = model.head(hidden_RLC[:, begin - end :])[0]
        return logits

    def _guided(self, logits_RSd: Tensor, frame: int, scale: int) -> Tensor:
        """Return logits (B, S, d)."""
        shape = self.shape
        if shape.rows == shape.captions:
            return logits_RSd
        strength = guidance.strength(self.config, frame, shape.frames, scale, len(shape.scales))
        return guidance.guided(logits_RSd, strength)

    def _draws(self, frame: int) -> Tensor:
        """Return a frame's uniform numbers (B, K, N), of each scale the first ones."""
        seeds_BK = counter_rng.fold_each(self._seeds_B, self._children_FK[frame])
        most = max(rows * columns for rows, columns in self.shape.scales) * self.model.bits
        return counter_rng.uniform(seeds_BK.flatten(), counter_rng.SAMPLE, (most,)).view(*seeds_BK.shape, most)
