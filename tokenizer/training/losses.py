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


def pixel_losses(recon_BCTHW: Tensor, real_BCTHW: Tensor, hardest: float = 1.0) -> dict[str, Tensor]:
    """Return `l1`, `l2` and `square`, the last of which is no loss where it differs from `l2`.

    l1, l2: means of the absolute and squared differences over the `hardest` share of each clip's pixels.
    square: the mean squared difference over all pixels; 10 log10(4 / this) is the PSNR in dB for the range [-1, 1].
    hardest: in (0, 1]; which pixels is decided by each pixel's squared difference, summed over its channels. Below 1 it is the bootstrapped
    loss of Sundermeyer et al. 2018 ("Implicit 3D Orientation Learning for 6D Object Detection from RGB Images", 3.3).
    """
    difference = recon_BCTHW.float() - real_BCTHW.float()
    l1, square = difference.abs().mean(), F.mse_loss(recon_BCTHW.float(), real_BCTHW.float())
    if hardest >= 1:
        return {"l1": l1, "l2": square, "square": square}
    pixels_BCN = difference.flatten(2)
    count = max(1, round(hardest * pixels_BCN.shape[2]))
    chosen_B1k = pixels_BCN.detach().square().sum(1, keepdim=True).topk(count, sorted=False).indices
    hard_BCk = pixels_BCN.gather(2, chosen_B1k.expand(-1, pixels_BCN.shape[1], -1))
    return {"l1": hard_BCk.abs().mean(), "l2": hard_BCk.square().mean(), "square": square.detach()}


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
