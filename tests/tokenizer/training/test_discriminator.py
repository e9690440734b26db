"""The discriminator's shape, and that it learns."""

from __future__ import annotations

import pytest
import torch

from tokenizer.training import losses
from tokenizer.training.discriminator import PatchDiscriminator


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_discriminator_takes_images_and_videos(frames: int) -> None:
    discriminator = PatchDiscriminator(width=8)
    logits = discriminator(torch.randn(2, 3, frames, 64, 64))
    assert logits.shape[:2] == (2, 1)
    assert logits.shape[3:] == (6, 6)


def test_discriminator_learns_to_tell_noise_from_stripes() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    real = torch.sin(torch.arange(32.0) / 3).expand(4, 3, 5, 32, 32)
    first = last = 0.0
    for step in range(15):
        loss = losses.discriminator_hinge(discriminator(real), discriminator(torch.randn(4, 3, 5, 32, 32)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item(), last) if step == 0 else (first, loss.item())
    assert last < 0.5 * first
