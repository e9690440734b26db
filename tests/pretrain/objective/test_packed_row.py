"""Packed rows: dealt evenly under the budget, exactly the unpacked loss, and no sample sees another."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.data.micro_batches import arrange
from pretrain.model.attention import Mask
from pretrain.model.config import ModelConfig
from pretrain.model.token_layout import Layout
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from pretrain.objective.packed_row import Pack
from tokenizer.quantization.codec_spec import CodecSpec

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


@pytest.mark.parametrize("backend", ["blocks", "dense"])
@pytest.mark.parametrize(("window", "frame_mask", "checkpointing"), [(0, 0.0, False), (1, 0.5, True)])
def test_a_packed_batch_is_the_unpacked_one(backend: str, window: int, frame_mask: float, checkpointing: bool) -> None:
    config = ObjectiveConfig(flip_max=0.3, condition_drop=0.4)
    found: list[tuple[dict[str, Tensor], list[Tensor]]] = []
    for whole in (batch(), packed(batch()), packed(batch(), room=11)):
        made = objective(backend, config)
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


@pytest.mark.parametrize("backend", ["blocks", "dense", "flex"])
def test_no_sample_sees_another(backend: str) -> None:
    """Gradient of each sample's video outputs with respect to the whole row: zero outside the sample."""
    layout = Layout(text=8, frames=2, scales=SPEC.scales(4, 4))
    spans = tuple(max(1, length) for length in LENGTHS)
    row = sum(spans) + layout.video * len(spans) + 3
    pack = Pack.make(layout, spans, row, torch.device("cpu"))
    owner = pack.join(torch.arange(5).unsqueeze(1).expand(5, layout.length))[0]
    owner[-3:] = -1
    mask = Mask((layout,), torch.tensor(spans).unsqueeze(1), 1, torch.rand(5, 1, 2) < 0.3)
    q, k, v = (torch.randn(1, 4, row, 8, requires_grad=backend != "flex") for _ in range(3))
    attend = pack.attend(backend, mask)  # type: ignore[arg-type]
    if backend == "flex":  # no backward pass on a CPU: change one sample's keys and values instead
        with torch.no_grad():
            base = attend(0, q, k, v)
            reference = pack.attend("dense", mask)(0, q, k, v)
            assert torch.allclose(base[:, :, owner >= 0], reference[:, :, owner >= 0], atol=1e-5)
            for sample in range(5):
                own = (owner == sample)[:, None]
                others = (torch.where(own, torch.randn_like(x), x) for x in (k, v))
                changed = (attend(0, q, *others) != base).any(3)[0].any(0)
                assert set(owner[changed].tolist()) == {sample}
        return
    out = pack.video(attend(0, q, k, v).transpose(1, 2))
    for sample in range(5):
        for gradient in torch.autograd.grad(out[sample].sum(), (q, k, v), retain_graph=True):
            touched = gradient.abs().sum((0, 1, 3)) > 0
            assert set(owner[touched].tolist()) == {sample}


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=80),
    st.integers(4, 90),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0, 150, 400, 2000]),
)
def test_every_slot_has_one_place_and_all_ranks_equal_rows(
    lengths: list[int], video: int, micro: int, world: int, budget: int
) -> None:
    made = arrange(lengths, video, 64, micro_batch=micro, world=world, budget=budget, above=0.03)
    assert len(made.micro_batches) == world
    assert len({len(rank) for rank in made.micro_batches}) == 1
    slots = Counter(slot for rank in made.micro_batches for part in rank for slot in part)
    assert set(slots.values()) == {1} and set(range(len(lengths))) <= set(slots)
    plain = arrange(lengths, video, 64, micro_batch=micro, world=world, budget=0, above=0.03)
    assert plain.row == 0 and made.positions <= plain.positions
    real = sum(video + max(1, length) for length in lengths)
    if made.row:
        assert made.row <= budget and len(slots) < len(lengths) + world
        sums = [sum(video + max(1, lengths[s % len(lengths)]) for s in part) for rank in made.micro_batches for part in rank]
        assert min(sums) > 0 and max(sums) <= made.row
        assert made.positions == made.row * len(sums)
        assert real < 0.97 * plain.positions
    else:
        assert made == plain


def test_packing_only_where_it_pays() -> None:
    def row(lengths: list[int], **settings: float) -> int:
        asked = {"micro_batch": 4, "world": 2, "budget": 400, "above": 0.03, **settings}
        return arrange(lengths, 30, 64, **asked).row  # type: ignore[arg-type]

    mixed = [2, 24, 9, 16] * 8
    assert 0 < row(mixed) <= 400
    assert row(mixed, above=0.4) == 0  # wastes less than that share
    assert row(mixed, budget=0) == 0
    assert row(mixed, budget=50) == 0  # the longest sample does not fit
    assert row([8] * 32) == 0  # nothing to gain
    # 25 samples on 2 ranks, 4 at once: 32 places; as rows 26, the last of them a fill sample.
    one = arrange([8] * 25, 30, 64, micro_batch=4, world=2, budget=70, above=0.03)
    assert one.row == 38 and one.positions == 26 * 38
    assert sorted(slot for rank in one.micro_batches for part in rank for slot in part) == list(range(26))
