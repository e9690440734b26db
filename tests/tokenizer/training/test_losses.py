"""Loss terms by their definitions."""

from __future__ import annotations

import pytest
import torch

from tokenizer.config import LossConfig
from tokenizer.training import losses


def test_total_weighs_the_terms() -> None:
    config = LossConfig(l1=1, l2=2, perceptual=3, gan=0.5, commitment=0.25, entropy=0.1, quantizer=4)
    terms = {name: torch.tensor(1.0) for name in ("l1", "l2", "perceptual", "gan", "commitment", "entropy")}
    assert losses.total(terms, config).item() == pytest.approx(1 + 2 + 3 + 0.5 + 1 + 0.4)
    with pytest.raises(AssertionError, match="without a weight"):
        losses.total({"other": torch.tensor(1.0)}, config)


def test_hinge_saturates_and_generator_wants_high_logits() -> None:
    sure = losses.discriminator_hinge(torch.tensor([2.0]), torch.tensor([-2.0]))
    wrong = losses.discriminator_hinge(torch.tensor([-1.0]), torch.tensor([1.0]))
    assert sure.item() == 0
    assert wrong.item() == 2
    assert losses.generator_hinge(torch.tensor([3.0])) < losses.generator_hinge(torch.tensor([1.0]))


def test_lecam_is_zero_at_the_moving_means_and_grows_beyond() -> None:
    zero, one = torch.tensor(0.0), torch.tensor([1.0])
    assert losses.lecam(torch.tensor([0.0]), torch.tensor([0.0]), zero, zero).item() == 0
    assert losses.lecam(one, -one, zero, zero).item() == 2
