"""Which shapes of a model are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pretrain.model.config import ModelConfig


@pytest.mark.parametrize("heads", [3, 32])
def test_the_width_must_divide_into_heads_of_even_dimension(heads: int) -> None:
    with pytest.raises(ValidationError, match=f"width 32 must divide into {heads} heads of even dimension"):
        ModelConfig(width=32, heads=heads)


def test_the_shares_of_the_axes_add_up_to_one() -> None:
    assert ModelConfig(rope_split=(0.0, 0.5, 0.5)).rope_split == (0.0, 0.5, 0.5)
    with pytest.raises(ValidationError, match=r"rope_split must add up to 1, not 0\.75"):
        ModelConfig(rope_split=(0.25, 0.25, 0.25))


def test_next_token_prediction_is_fed_codes_alone() -> None:
    with pytest.raises(ValidationError, match="order: tokens is fed codes alone; leave previous_frame at first_scale"):
        ModelConfig(order="tokens", previous_frame="every_scale")
