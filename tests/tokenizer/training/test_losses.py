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


def test_hardest_pixels_alone_are_averaged() -> None:
    """A small thing that is missed in one clip of two: all pixels dilute it, and each clip has its own hardest ones."""
    real = torch.zeros(2, 3, 2, 10, 10)
    real[0, :, 1, :2, :5] = 1.0
    recon = torch.zeros_like(real, requires_grad=True)
    all_pixels = losses.pixel_losses(recon, real)
    assert all_pixels["l2"].item() == pytest.approx(10 / 400)
    assert all_pixels["square"] is all_pixels["l2"]
    hard = losses.pixel_losses(recon, real, 0.05)
    assert hard["l1"].item() == pytest.approx(0.5)  # ten of ten pixels in the first clip, none in the second
    assert hard["square"].item() == pytest.approx(10 / 400)
    assert not hard["square"].requires_grad
    (gradient,) = torch.autograd.grad(hard["l2"], recon)
    assert (gradient != 0).sum().item() == 30


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
