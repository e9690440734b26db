"""FLOPs of a step, and the peak of the machine."""

from __future__ import annotations

import pytest
import torch

from pretrain.estimate import flops, hardware
from pretrain.model.attention import Mask
from pretrain.model.token_layout import Layout


@pytest.mark.parametrize("window", [0, 1, 2])
def test_attended_pairs_are_those_of_the_mask(window: int) -> None:
    layout = Layout(5, 4, ((1, 1), (2, 2), (3, 3)))
    mask = Mask((layout,), torch.tensor([[5]]), window).dense()
    assert flops.causal_pairs(5, 4, [1, 4, 9], window) == int(mask.sum())


def test_flops_and_peak() -> None:
    # One matrix of 10 parameters, 7 tokens: 2 forward and 4 backward each; attention: 4 FLOPs a pair a width, times 3.
    assert flops.training_flops(10, 7, 0, 0, 0) == 420
    assert flops.training_flops(0, 0, 2, 8, 5) == 960
    torch.set_num_threads(1)
    assert 1e8 < hardware.peak_flops(torch.device("cpu"), torch.float32, 1) < 1e13
