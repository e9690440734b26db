"""Inflation: last slice takes the 2D weights, and misfits are named."""

from __future__ import annotations

import pytest
import torch

from tokenizer.codec.inflate import inflate

SHAPES: dict[str, tuple[int, ...]] = {"a.weight": (2, 3, 3, 3, 3), "a.bias": (2,), "b.weight": (2, 2, 1, 1, 1)}


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.randn(2, 3, 3, 3), "a.bias": torch.randn(2), "b.weight": torch.randn(2, 2, 1, 1)}


def test_last_slice_takes_the_weights_and_older_ones_are_zero() -> None:
    flat = weights()
    full = inflate(flat, SHAPES)
    assert torch.equal(full["a.weight"][:, :, -1], flat["a.weight"])
    assert full["a.weight"][:, :, :-1].abs().max() == 0
    assert torch.equal(full["b.weight"][:, :, 0], flat["b.weight"])
    assert torch.equal(full["a.bias"], flat["a.bias"])


def test_random_older_slices_repeat_with_the_seed() -> None:
    flat = weights()
    one, two = inflate(flat, SHAPES, older="random", seed=1), inflate(flat, SHAPES, older="random", seed=1)
    assert torch.equal(one["a.weight"], two["a.weight"])
    assert one["a.weight"][:, :, 0].std() > 0
    assert torch.equal(one["a.weight"][:, :, -1], flat["a.weight"])


@pytest.mark.parametrize("change", ["missing", "foreign", "shape"])
def test_misfits_are_named(change: str) -> None:
    flat = weights()
    if change == "missing":
        del flat["a.bias"]
    elif change == "foreign":
        flat["c.weight"] = torch.zeros(1)
    else:
        flat["a.weight"] = torch.zeros(2, 3, 5, 5)
    with pytest.raises(ValueError, match={"missing": "a.bias", "foreign": "c.weight", "shape": "does not inflate"}[change]):
        inflate(flat, SHAPES)
