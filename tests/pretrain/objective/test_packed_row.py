"""Packed rows: exactly the unpacked loss, and no sample sees another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pretrain.attention.attention import Mask
from pretrain.attention.token_layout import Layout
from pretrain.data.batch import Batch
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from pretrain.objective.packed_row import PackedRow
from tests.helpers.varlen import varlen_on_cpu
from tokenizer.quantization.codec_spec import CodecSpec

__all__ = ["varlen_on_cpu"]

SPEC = CodecSpec(bits=16, spatial_stride=16, temporal_stride=4, digest="x")
MODEL = ModelConfig(layers=2, width=32, heads=4, text_length=8, max_scales=4)
LENGTHS = (5, 3, 0, 1, 8)


def batch(grid: tuple[int, int, int] = (2, 4, 4)) -> Batch:
    generator = torch.Generator().manual_seed(3)
    count = len(LENGTHS)
    size = grid[0] * SPEC.frame_bytes(*grid[1:])
    return Batch(
        bits=torch.randint(0, 256, (count, size), dtype=torch.uint8, generator=generator),
        text=torch.randint(0, 256, (count, 8), generator=generator),
        text_length=torch.tensor(LENGTHS),
        weight=torch.tensor([0.1, 0.3, 0.2, 0.0, 0.4]),
        seeds=torch.arange(count) + 7,
        grid=grid,
        ids=tuple(map(str, range(count))),
    )


def packed(whole: Batch, room: int = 0) -> Batch:
    video = whole.grid[0] * SPEC.positions(*whole.grid[1:])
    spans = tuple(max(1, length) for length in whole.text_length.tolist())
    return replace(whole, row=sum(spans) + video * len(spans) + room, spans=spans)


def objective(backend: str, config: ObjectiveConfig) -> Objective:
    torch.manual_seed(0)
    return Objective(VideoAR(MODEL.model_copy(update={"attention": backend}), 16, 256), config, SPEC)


@pytest.mark.usefixtures("varlen_on_cpu")
@pytest.mark.parametrize("backend", ["blocks", "dense", "flash", "cudnn"])
@pytest.mark.parametrize(("window", "frame_mask", "checkpointing"), [(0, 0.0, False), (1, 0.5, True)])
def test_a_packed_batch_is_the_unpacked_one(backend: str, window: int, frame_mask: float, checkpointing: bool) -> None:
    config = ObjectiveConfig(flip_max=0.3, condition_drop=0.4)
    found: list[tuple[dict[str, Tensor], list[Tensor]]] = []
    batches = (batch(), packed(batch()), packed(batch(), room=11))
    for chosen, whole in (("blocks", batches[0]), *((backend, item) for item in batches)):
        made = objective(chosen, config)
        made.model.activation_checkpointing = checkpointing
        out = made(whole, window, frame_mask)
        out["loss"].backward()
        found.append((out, [p.grad for p in made.parameters() if p.grad is not None]))
    (expected, gradients), *others = found
    for out, ours in others:
        for name, value in expected.items():
            assert torch.allclose(out[name], value, rtol=1e-5, atol=1e-6), name
        assert len(ours) == len(gradients)
        for a, b in zip(gradients, ours, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("varlen_on_cpu")
@pytest.mark.parametrize("backend", ["blocks", "dense", "flash", "cudnn"])
def test_no_sample_sees_another(backend: str) -> None:
    """Gradient of each sample's video outputs with respect to the whole row: zero outside the sample."""
    layout = Layout(text=8, frames=2, scales=SPEC.scales(4, 4))
    spans = tuple(max(1, length) for length in LENGTHS)
    row = sum(spans) + layout.video * len(spans) + 3
    shared = PackedRow.make(layout, spans, row, torch.device("cpu"))
    mask = Mask((layout,), torch.tensor(spans).unsqueeze(1), 1, torch.arange(10).view(5, 1, 2) % 3 == 0)
    q, k, v = (torch.randn(1, 4, row, 8, requires_grad=True) for _ in range(3))
    shared, attend = shared.bind(backend, mask, torch.device("cpu"))  # type: ignore[arg-type]
    owner = torch.full((row,), -1)
    owner[shared.to_samples[:, layout.text :]] = torch.arange(5).unsqueeze(1)
    for sample, span in enumerate(spans):
        owner[shared.to_samples[sample, :span]] = sample
    out = shared.video(attend(0, q, k, v).transpose(1, 2))
    for sample in range(5):
        for gradient in torch.autograd.grad(out[sample].sum(), (q, k, v), retain_graph=True):
            touched = gradient.abs().sum((0, 1, 3)) > 0
            assert set(owner[touched].tolist()) == {sample}
