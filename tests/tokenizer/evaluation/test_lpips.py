"""LPIPS on its true weights.

The pinned distances were computed by this implementation after it had given the LPIPS authors' own numbers on their example
pair (ref against p0 / p1: Alex 0.7219 / 0.1376, VGG 0.5686 / 0.4217); the pictures themselves do not belong into this project.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from tests.helpers.tools import unfetched
from tokenizer.evaluation.lpips import Lpips, PerceptualLoss, perceptual
from tokenizer.evaluation.pretrained import WeightsError

FETCHED = pytest.mark.skipif(
    unfetched("lpips-alex", "lpips-vgg"), reason="scoring networks not fetched (`make setup` fetches them)"
)


def pair() -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    a = torch.stack([torch.sin(x / 5), torch.cos(y / 7), torch.sin((x + y) / 9)])[None]
    b = torch.stack([torch.sin(x / 5 + 0.5), torch.cos(y / 6), torch.sin((x + y) / 9)])[None] * 0.8
    return a, b


def random_alex() -> Mapping[str, Tensor]:
    """Arrays in the public layout with random values."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256)]
    made: dict[str, Tensor] = {}
    for i, shape in enumerate(shapes):
        made[f"AlexNet_0/Conv_{i}/kernel"] = torch.randn(shape, generator=generator) / (shape[0] ** 2 * shape[2]) ** 0.5
        made[f"AlexNet_0/Conv_{i}/bias"] = torch.zeros(shape[3])
        made[f"NetLinLayer_{i}/Conv_0/kernel"] = torch.rand((1, 1, shape[3], 1), generator=generator)
    return made


@FETCHED
@pytest.mark.parametrize(("net", "want"), [("lpips-alex", 0.081869), ("lpips-vgg", 0.218327)])
def test_distances_on_true_weights(net: str, want: float) -> None:
    a, b = pair()
    lpips = Lpips(net)  # type: ignore[arg-type]
    assert lpips(a, b).item() == pytest.approx(want, abs=2e-5)
    assert lpips(a, a).item() == 0


def test_it_is_a_distance_a_frame_and_passes_gradients() -> None:
    lpips = Lpips("lpips-alex", random_alex())
    a, b = pair()
    assert torch.allclose(lpips(a, b), lpips(b, a))
    two = lpips(torch.cat((a, a)), torch.cat((b, a)))
    assert two.shape == (2,)
    assert two[1] == 0
    clip = torch.stack((a, a), dim=2).requires_grad_()
    loss = PerceptualLoss(lpips)(clip, torch.stack((b, b), dim=2))
    (gradient,) = torch.autograd.grad(loss, clip)
    assert gradient.abs().sum() > 0
    assert all(not weight.requires_grad for weight in lpips.parameters())


def test_small_pictures_and_missing_weights_are_named(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 32x32"):
        Lpips("lpips-alex", random_alex())(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    monkeypatch.setenv("VIDEOAR_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="fetch"):
        perceptual("lpips-vgg", "cpu")
    assert perceptual("none", "cpu") is None
