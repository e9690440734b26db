"""Loss terms by their definitions, and the discriminator's shape and sense."""

from __future__ import annotations

import pytest
import torch

from tokenizer.config import LossConfig
from tokenizer.training import losses
from tokenizer.training.discriminator import PatchDiscriminator


def test_total_weighs_the_terms() -> None:
    config = LossConfig(l1=1, l2=2, perceptual=3, gan=0.5, commitment=0.25, entropy=0.1, quantizer=4)
    terms = {name: torch.tensor(1.0) for name in ("l1", "l2", "perceptual", "gan", "commitment", "entropy")}
    assert losses.total(terms, config).item() == pytest.approx(1 + 2 + 3 + 0.5 + 1 + 0.4)
    with pytest.raises(AssertionError, match="without a weight"):
        losses.total({"other": torch.tensor(1.0)}, config)


def test_hinge_saturates_and_generator_wants_high_opinions() -> None:
    sure = losses.discriminator_hinge(torch.tensor([2.0]), torch.tensor([-2.0]))
    wrong = losses.discriminator_hinge(torch.tensor([-1.0]), torch.tensor([1.0]))
    assert sure.item() == 0
    assert wrong.item() == 2
    assert losses.generator_hinge(torch.tensor([3.0])) < losses.generator_hinge(torch.tensor([1.0]))


def test_lecam_is_zero_at_the_moving_means_and_grows_beyond() -> None:
    zero, one = torch.tensor(0.0), torch.tensor([1.0])
    assert losses.lecam(torch.tensor([0.0]), torch.tensor([0.0]), zero, zero).item() == 0
    assert losses.lecam(one, -one, zero, zero).item() == 2


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_discriminator_takes_images_and_videos(frames: int) -> None:
    judge = PatchDiscriminator(width=8)
    opinion = judge(torch.randn(2, 3, frames, 64, 64))
    assert opinion.shape[:2] == (2, 1)
    assert opinion.shape[3:] == (6, 6)


def test_discriminator_learns_to_tell_noise_from_stripes() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(width=8)
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)
    real = torch.sin(torch.arange(32.0) / 3).expand(4, 3, 5, 32, 32)
    first = last = 0.0
    for step in range(15):
        loss = losses.discriminator_hinge(judge(real), judge(torch.randn(4, 3, 5, 32, 32)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item(), last) if step == 0 else (first, loss.item())
    assert last < 0.5 * first
