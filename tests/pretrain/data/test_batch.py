"""A global batch is dealt to any number of ranks in equal shapes, each slot once, packed where that pays."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.batch import Batch, arrange, split


@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 9))
def test_split_gives_all_ranks_equal_work_and_every_slot_once(batch: int, micro: int, world: int) -> None:
    parts = split(batch, micro, world)
    assert parts.micro_batch <= micro
    seen: Counter[int] = Counter()
    for rank in range(world):
        slots = parts.slots(batch, rank, world)
        assert len(slots) == parts.accumulation and {len(part) for part in slots} == {parts.micro_batch}
        seen.update(slot for part in slots for slot in part)
    assert all(seen[slot] == 1 for slot in range(batch)) and max(seen.values()) == 1
    # No more filling than the shape asks for.
    assert sum(seen.values()) - batch < world * parts.accumulation + world


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


def test_moving_a_batch_takes_all_of_its_tensors() -> None:
    batch = Batch(
        bits=torch.zeros(2, 4, dtype=torch.uint8),
        text=torch.zeros(2, 3, dtype=torch.int64),
        text_length=torch.tensor([3, 1]),
        weight=torch.full((2,), 0.5),
        seeds=torch.arange(2),
        grid=(1, 2, 2),
        ids=("a", "b"),
        features=torch.zeros(2, 1, 4, 2, 2, dtype=torch.bfloat16),
    )
    moved = batch.to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6 and all(tensor.is_meta for tensor in tensors)
    assert moved.grid == batch.grid and moved.ids == batch.ids
