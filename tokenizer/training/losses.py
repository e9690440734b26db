"""The terms of the tokenizer's loss (VideoAR Eq. 4): pixels, perception, quantizer, adversary.

In:  original and reconstruction (B,3,T,H,W) in [-1, 1], terms of the `Bottleneck`, logits of the discriminator.
Out: scalar terms; `total` weighs them by the `loss` section.

Reconstruction, perceptual and commitment terms are means over single frames. The default weights are those of Infinity's
released tokenizer training scripts; hinge loss and LeCAM follow Tseng et al. 2021.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from tokenizer.config import LossConfig


def pixel_loss(recon_BCTHW: Tensor, real_BCTHW: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    return (recon_BCTHW.float() - real_BCTHW.float()).abs().mean()


def square_loss(recon_BCTHW: Tensor, real_BCTHW: Tensor) -> Tensor:
    """Return the mean squared difference; 10 log10(4 / this) is the PSNR in dB for the range [-1, 1]."""
    return F.mse_loss(recon_BCTHW.float(), real_BCTHW.float())


def generator_hinge(fake_logits: Tensor) -> Tensor:
    """Return the generator's adversarial loss: minus the mean logit of its reconstructions."""
    return -fake_logits.mean()


def discriminator_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the discriminator's loss."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def lecam(real_logits: Tensor, fake_logits: Tensor, mean_real: Tensor, mean_fake: Tensor) -> Tensor:
    """Return the LeCAM regularisation, given the moving means of the logits of originals and reconstructions."""
    return F.relu(real_logits - mean_fake).pow(2).mean() + F.relu(mean_real - fake_logits).pow(2).mean()


def total(terms: Mapping[str, Tensor], config: LossConfig) -> Tensor:
    """Return the weighted sum of the generator's terms; a missing term counts 0."""
    weights = {
        "l1": config.l1,
        "l2": config.l2,
        "perceptual": config.perceptual,
        "gan": config.gan,
        "commitment": config.quantizer * config.commitment,
        "entropy": config.quantizer * config.entropy,
    }
    unknown = set(terms) - set(weights)
    assert not unknown, f"loss terms without a weight: {unknown}"
    summed = [weights[name] * term for name, term in terms.items()]
    out = summed[0]
    for term in summed[1:]:
        out = out + term
    return out
