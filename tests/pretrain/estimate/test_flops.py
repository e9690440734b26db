"""FLOPs of a step, and the peak of the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pretrain.attention.attention import Mask
from pretrain.attention.token_layout import Layout
from pretrain.estimate.flops import EstimateError, attended_pairs, peak_flops, peak_of, training_flops

LAYOUT = Layout(3, 4, ((1, 1), (2, 2), (2, 3)))


@pytest.mark.parametrize("window", [0, 1, 2])
def test_attended_pairs_are_those_of_the_mask(window: int) -> None:
    for layout in (LAYOUT, LAYOUT.cut(3, last=2), replace(LAYOUT, text=0)):
        mask = Mask((layout,), torch.tensor([[layout.text]]), window).dense()
        assert attended_pairs(layout, window) == int(mask.sum())


def test_padding_of_the_text_is_not_attended() -> None:
    dense = Mask((LAYOUT,), torch.tensor([[2]])).dense()[0, 0]
    dense[2] = False  # the padding token, which sees itself and the text before it
    assert attended_pairs(replace(LAYOUT, text=2)) == int(dense.sum())


def test_flops_and_peak() -> None:
    # One matrix of 10 parameters, 7 tokens: 2 forward and 4 backward each; attention: 4 FLOPs per pair and width, times 3.
    assert training_flops(10, 7, 0, 0, 0) == 420
    assert training_flops(0, 0, 2, 8, 5) == 960
    torch.set_num_threads(1)
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e13


def test_an_unknown_gpu_is_named() -> None:
    assert peak_of("h100") == 989e12
    with pytest.raises(EstimateError, match="no peak is known for GPU `Voodoo`"):
        peak_of("Voodoo")
