"""The sharded moving average: how it moves, and slices joined to whole tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.engine.ema import Ema, decay_at, join, slice_of


def test_the_moving_average_moves_by_its_decay_which_warms_up() -> None:
    ema = Ema(0.25)
    ema.start([("w", torch.tensor([1.0, 2.0], dtype=torch.bfloat16))])
    ema.update([("w", torch.tensor([12.0, 2.0], dtype=torch.bfloat16))])
    assert ema.slices["w"].tolist() == [10.0, 2.0] and ema.slices["w"].dtype == torch.float32, "2/11 of it is kept"
    ema.update([("w", torch.tensor([6.0, 6.0]))], torch.tensor(False))
    assert ema.slices["w"].tolist() == [10.0, 2.0]
    ema.update([("w", torch.tensor([6.0, 6.0]))], torch.tensor(True))
    assert ema.slices["w"].tolist() == [7.0, 5.0], "and never more than the decay"
    assert ema.start_share == pytest.approx(0.25 * 2 / 11) and ema.updates == 3


def test_a_short_run_s_average_is_not_its_start() -> None:
    """At the recipes' 0.9999, twenty steps used to leave 99.8 % of the random weights in it."""
    ema, weight = Ema(0.9999), torch.zeros(1)
    ema.start([("w", torch.full((1,), 100.0))])
    for _ in range(20):
        ema.update([("w", weight)])
    assert float(ema.slices["w"]) == pytest.approx(100 * ema.start_share, rel=1e-4) and ema.start_share < 1e-5
    assert decay_at(0.9999, 10**6) == 0.9999


def test_a_resumed_average_goes_on_and_an_older_one_tells_its_start() -> None:
    first, second = Ema(0.9), Ema(0.9)
    first.start([("w", torch.ones(2))])
    for step in range(1, 6):
        first.update([("w", torch.full((2,), float(step)))])
        if step == 3:
            second.resume({"w": first.slices["w"].clone()}, 3, first.start_share)
        elif step > 3:
            second.update([("w", torch.full((2,), float(step)))])
    assert torch.equal(first.slices["w"], second.slices["w"]) and first.start_share == second.start_share
    second.resume({}, 20, None)
    assert second.start_share == 0.9**20


@given(st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5), st.integers(1, 5))
def test_slices_of_all_ranks_join_to_the_whole(shapes: list[tuple[int, ...]], world: int) -> None:
    named = {f"p{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    slices = [{name: slice_of(value.flatten(), rank, world) for name, value in named.items()} for rank in range(world)]
    found = join(slices, {name: value.shape for name, value in named.items()})
    assert all(torch.equal(found[name], value) for name, value in named.items())
