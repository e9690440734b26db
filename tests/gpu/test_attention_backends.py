"""On a card: every backend of attention against float64 on the CPU. (Flash in bfloat16: tests/pretrain/attention/test_flash_attention.py.)"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.attention.attention import Backend, bind_mask
from tests.helpers.masks import MASKS, real_tokens

CASES: tuple[tuple[Backend, torch.dtype, float], ...] = (
    ("blocks", torch.float32, 1e-4),
    ("blocks", torch.bfloat16, 2e-2),
    ("dense", torch.float32, 1e-4),
    ("flash", torch.float16, 2e-3),
)
"""Backend, type, and the largest ||difference|| / ||reference||: several roundings of the type."""


def gradients(name: str, backend: Backend, given: list[Tensor], device: str, dtype: torch.dtype) -> list[Tensor]:
    """Return output and gradients on the CPU in float64, of tokens that count."""
    real_BL = real_tokens(MASKS[name])[:, None, :, None].to(device)
    q, k, v, wanted = (x.to(device, dtype) for x in given)
    for x in (q, k, v):
        x.requires_grad_()
    out = bind_mask(backend, MASKS[name], q.device, dtype)(0, q, k, v)
    found = torch.autograd.grad((out * wanted * real_BL).sum(), (q, k, v))
    return [(x.detach() * real_BL).double().cpu() for x in (out, *found)]


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "dtype", "bound"), CASES)
@pytest.mark.parametrize("head", [64, 80, 128])
def test_output_and_gradients_lie_near_those_in_float64(backend: Backend, dtype: torch.dtype, bound: float, head: int) -> None:
    for name, mask in MASKS.items():
        generator = torch.Generator().manual_seed(head)
        shape = (2, 3, mask.length, head)
        given = [(torch.randn(shape, generator=generator) * size).to(dtype) for size in (head**-0.5, 1, 1, 1)]
        wanted = gradients(name, "dense", given, "cpu", torch.float64)
        found = gradients(name, backend, given, "cuda", dtype)
        for part, one, two in zip(("output", "dq", "dk", "dv"), wanted, found, strict=True):
            off = float((one - two).norm() / one.norm())
            assert off <= bound, f"{name}: {part} is off by {off:.2g}"
