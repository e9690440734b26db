"""Draws are a pure function of seed, stream and position."""

from __future__ import annotations

import pytest
import torch

from pretrain.objective import counter_rng


def test_a_sample_draws_the_same_in_any_batch() -> None:
    seeds = torch.tensor([3, -7, 1 << 62])
    whole = counter_rng.uniform(seeds, counter_rng.FLIP, (5, 3))
    assert whole.shape == (3, 5, 3) and whole.dtype == torch.float32
    for index in range(3):
        assert torch.equal(counter_rng.uniform(seeds[index : index + 1], counter_rng.FLIP, (5, 3))[0], whole[index])


def test_a_longer_draw_begins_like_a_shorter_one() -> None:
    seeds = torch.arange(4)
    assert torch.equal(counter_rng.uniform(seeds, 0, (9,))[:, :5], counter_rng.uniform(seeds, 0, (5,)))


@pytest.mark.parametrize("stream", range(5))
def test_numbers_are_uniform_and_uncorrelated(stream: int) -> None:
    numbers = counter_rng.uniform(torch.arange(64), stream, (4096,))
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
    count = numbers.numel()
    # 5 standard deviations of the mean, of the bins' counts and of the correlations.
    assert abs(float(numbers.mean()) - 0.5) < 5 / (12 * count) ** 0.5
    bins = torch.histc(numbers, 16, 0, 1)
    assert float((bins - count / 16).abs().max()) < 5 * (count / 16) ** 0.5
    centred = (numbers - 0.5) * 12**0.5
    for other in (centred.roll(1, 1), centred.roll(2, 1), centred.roll(1, 0)):
        assert abs(float((centred * other).mean())) < 5 / count**0.5


def test_streams_and_children_differ() -> None:
    seeds = torch.arange(1000)
    drawn = [counter_rng.uniform(seeds, stream, (1,)) for stream in range(5)]
    drawn += [counter_rng.uniform(counter_rng.fold(seeds, child), 0, (1,)) for child in range(5)]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert abs(float(torch.corrcoef(torch.stack((first[:, 0], second[:, 0])))[0, 1])) < 0.16
    assert torch.unique(counter_rng.fold(seeds, 3)).numel() == 1000


def test_folding_several_numbers_at_once_equals_folding_each() -> None:
    seeds = torch.tensor([0, 7, 2**62])
    numbers = [0, 1, 5, 10**12]
    together = counter_rng.fold_each(seeds, counter_rng.child_keys(numbers))
    for at, number in enumerate(numbers):
        assert torch.equal(together[:, at], counter_rng.fold(seeds, number))
