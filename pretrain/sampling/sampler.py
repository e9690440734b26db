"""The sampler: one forward of the transformer for each scale of each frame, over cached keys and values.

In:  a model, captions, the latent grid, and for continuation the bits of a prefix.
Out: packed bits of whole clips; or a stream of steps, so that frames can be decoded while the next are made.
Called by: pretrain.train (samples in the loop, on every rank), pretrain.generate (`videoar sample`), benchmarks.

Legend: B captions, R rows of the forward (B, or 2 B under guidance: condition, then null), P text tokens, T latent
frames, K scales, d bits a token, S tokens of a scale.

The first forward takes the text, the whole prefix and the first scale to make; each later forward takes one scale. So a
clip costs (T - prefix) x K forwards, whatever the captions: ranks that sample together under ZeRO-3 stay in step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.runtime.progress import ProgressBar
from pretrain.model.attention import Mask, plan
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.token_layout import Layout
from pretrain.model.transformer import VideoAR
from pretrain.objective import counter_rng, teacher_forcing
from pretrain.sampling import guidance
from pretrain.sampling.config import SampleConfig
from pretrain.sampling.kv_cache import Cache
from tokenizer.quantization.bit_packing import pack, unpack
from tokenizer.quantization.bsq import codes
from tokenizer.quantization.codec_spec import CodecSpec


class SampleError(ValueError):
    """A request that cannot be sampled; the message names the mend."""


@dataclass(frozen=True)
class Step:
    """One scale of one frame, for all captions."""

    frame: int
    scale: int
    logits: Tensor
    """float32 (B, S, d): after guidance, before the temperature."""
    bits: Tensor
    """bool (B, rows, columns, d)."""


@torch.no_grad()
def sample(
    model: VideoAR,
    spec: CodecSpec,
    text_tokenizer: TextTokenizer,
    captions: Sequence[str],
    grid: tuple[int, int, int],
    config: SampleConfig,
    *,
    prefix: Tensor | None = None,
    seed: int,
    window: int = 0,
    progress: ProgressBar | None = None,
) -> Tensor:
    """Return packed bits uint8 (B, T * frame_bytes), the prefix included, on the model's device.

    captions: empty ones are sampled without a condition. grid: latent frames, rows, columns. prefix: uint8
    (B, n * frame_bytes) with n < T. window: history that each frame sees, 0 = all (as in training). Sample i depends on
    (seed, i) only. progress: moved once a forward.
    Raises SampleError or TextError for a request that cannot be met.
    """
    frames: list[Tensor] = [] if prefix is None else [prefix.to(model.start.weight.device)]
    maps: list[Tensor] = []
    for step in steps(model, spec, text_tokenizer, captions, grid, config, prefix=prefix, seed=seed, window=window):
        maps.append(step.bits)
        if progress is not None:
            progress.update()
        if step.scale + 1 == len(spec.scales(*grid[1:])):
            frames.append(pack(maps))
            maps = []
    return torch.cat(frames, dim=1)


@torch.no_grad()
def steps(
    model: VideoAR,
    spec: CodecSpec,
    text_tokenizer: TextTokenizer,
    captions: Sequence[str],
    grid: tuple[int, int, int],
    config: SampleConfig,
    *,
    prefix: Tensor | None = None,
    seed: int,
    first: int = 0,
    window: int = 0,
) -> Iterator[Step]:
    """Yield the scales of a clip one after the other; arguments as for `sample`. first: number of the first caption."""
    frames = grid[0]
    scales = spec.scales(*grid[1:])
    device = model.start.weight.device
    known = 0 if prefix is None else _prefix_frames(prefix, spec, grid, len(captions))
    if len(scales) > model.config.max_scales:
        raise SampleError(f"grid {grid[1]}x{grid[2]} has {len(scales)} scales, model.max_scales is {model.config.max_scales}")
    text, length = _conditions(model, text_tokenizer, captions, config)
    text, length = text.to(device), length.to(device)
    is_guided = text.shape[0] > len(captions)
    layout = Layout(text.shape[1], frames, scales)
    positions = model.positions(layout, length)
    scale_numbers = layout.tokens().scale[layout.text :].to(device)
    cache = Cache(model.config, layout, length, window, model.dtype)
    seeds = counter_rng.fold(torch.arange(first, first + len(captions), device=device), seed)
    mode = model.config.input_resize
    total = torch.zeros(len(captions), spec.bits, *scales[-1], device=device)
    fed = torch.zeros(len(captions), 0, spec.bits, device=device)
    if prefix is not None:
        bits = unpack(prefix.to(device).reshape(len(captions) * known, -1), scales, spec.bits)
        _, inputs, final = teacher_forcing.teach(bits, scales, mode=mode)
        fed = teacher_forcing.feed(inputs, final, known, scales, mode)
        total = final.view(len(captions), known, *final.shape[1:])[:, -1]

    for frame in range(known, frames):
        carried, total = total, torch.zeros_like(total)
        for scale, (rows, columns) in enumerate(scales):
            source = carried if scale == 0 else total
            new = teacher_forcing.resize(source, scales[scale], mode).flatten(2).transpose(1, 2)
            is_first = frame == known and scale == 0
            begin, end = layout.span(frame, scale)
            if is_first:
                new, begin = torch.cat((fed, new), dim=1), 0
                start = layout.cut(frame + 1, last=1)
                attend = cache.prefill(plan(model.config.attention, Mask((start,), length.unsqueeze(1), window)), frame)
            else:
                attend = cache.step(frame, scale)
            numbers = scale_numbers[max(0, begin - layout.text) : end - layout.text]
            new = new.repeat(2, 1, 1) if is_guided else new
            x_RLC = model.embed(text if is_first else text[:, :0], new, numbers, starts=is_first)
            hidden_RLC = model(x_RLC, positions[:, begin:end], attend)
            logits = model.head(hidden_RLC[:, -rows * columns :])[0]
            if is_guided:
                logits = guidance.guided(logits, guidance.strength(config, frame, frames, scale, len(scales)))
            drawn = counter_rng.uniform(
                counter_rng.fold(seeds, frame * len(scales) + scale), counter_rng.SAMPLE, logits.shape[1:]
            )
            chosen = drawn < (logits / config.temperature).sigmoid() if config.temperature > 0 else logits > 0
            chosen = chosen.unflatten(1, (rows, columns))
            total = total + teacher_forcing.enlarge(codes(chosen), scales[-1])
            yield Step(frame, scale, logits, chosen)


def forwards(frames: int, scales: int, prefix: int = 0) -> int:
    """Forwards of the transformer that a clip takes."""
    return (frames - prefix) * scales


def _conditions(
    model: VideoAR, tokenizer: TextTokenizer, captions: Sequence[str], config: SampleConfig
) -> tuple[Tensor, Tensor]:
    """Text (R, P) and lengths (R): the captions, and as many null rows when guidance is on."""
    if not captions:
        raise SampleError("no caption: name at least one (an empty one samples without a condition)")
    is_guided = guidance.needed(config)
    if is_guided and not model.config.null_token:
        raise SampleError(
            "guidance needs a null token and this model has none: set sample.guidance=[1,1] sample.guidance_end=1"
        )
    text, length = tokenizer.batch(captions, refuse=True)
    if not model.config.null_token:
        return text, length
    text[length == 0, 0] = model.null
    length = length.clamp(min=1)
    if is_guided:
        null = torch.zeros_like(text)
        null[:, 0] = model.null
        text, length = torch.cat((text, null)), torch.cat((length, torch.ones_like(length)))
    return text, length


def _prefix_frames(prefix: Tensor, spec: CodecSpec, grid: tuple[int, int, int], captions: int) -> int:
    frames, rows, columns = grid
    size = spec.frame_bytes(rows, columns)
    if prefix.ndim != 2 or prefix.shape[0] != captions or prefix.shape[1] % size or not prefix.shape[1]:
        raise SampleError(
            f"prefix of shape {tuple(prefix.shape)}: {captions} captions on a {rows}x{columns} grid take "
            f"({captions}, n * {size}) bytes"
        )
    known = prefix.shape[1] // size
    if known >= frames:
        raise SampleError(f"the prefix has {known} latent frames, the clip {frames}: ask for more frames")
    return known
