"""The sharded moving average: how it moves, and slices joined to whole tensors."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.engine.ema import Ema, join, slice_of


def test_the_moving_average_moves_by_its_decay() -> None:
    ema = Ema(0.75)
    ema.start([("w", torch.tensor([1.0, 2.0], dtype=torch.bfloat16))])
    ema.update([("w", torch.tensor([5.0, 2.0], dtype=torch.bfloat16))])
    assert ema.slices["w"].tolist() == [2.0, 2.0] and ema.slices["w"].dtype == torch.float32
    ema.update([("w", torch.tensor([6.0, 6.0]))], torch.tensor(False))
    assert ema.slices["w"].tolist() == [2.0, 2.0]
    ema.update([("w", torch.tensor([6.0, 6.0]))], torch.tensor(True))
    assert ema.slices["w"].tolist() == [3.0, 3.0]


@given(st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5), st.integers(1, 5))
def test_slices_of_all_ranks_join_to_the_whole(shapes: list[tuple[int, ...]], world: int) -> None:
    named = {f"p{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    slices = [{name: slice_of(value.flatten(), rank, world) for name, value in named.items()} for rank in range(world)]
    found = join(slices, {name: value.shape for name, value in named.items()})
    assert all(torch.equal(found[name], value) for name, value in named.items())
