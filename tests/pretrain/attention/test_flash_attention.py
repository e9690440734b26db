"""The parts of the mask together: the same output and gradients as one softmax under the dense mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.attention import attention
from pretrain.attention.attention import Mask, bind_mask
from pretrain.attention.token_layout import Layout
from tests.helpers.masks import MASKS, qkv, real_tokens
from tests.helpers.varlen import varlen_on_cpu
from tokenizer.quantization.scale_schedule import scales

__all__ = ["varlen_on_cpu"]

LARGE = {
    # Scales of several tiles, and rows that are long enough to be calls of their own.
    "large scales": Mask((Layout(5, 3, scales(12, 16)),), torch.tensor([[5], [5]]), padding=7),
    "large hidden": Mask(
        (Layout(5, 4, scales(12, 16)),), torch.tensor([[5], [3]]), 2, torch.arange(8).view(2, 1, 4) % 3 == 1, 7
    ),
}


def _results(backend: str, mask: Mask, dtype: torch.dtype) -> list[Tensor]:
    q, k, v = qkv(mask, dtype)
    real_BL = real_tokens(mask)
    out = bind_mask(backend, mask)(0, q, k, v)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(9)
    wanted = torch.randn(out.shape, generator=generator).to(dtype) * real_BL[:, None, :, None]
    (out * wanted).sum().backward()
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return [x * real_BL[:, None, :, None] for x in (out.detach(), q.grad, k.grad, v.grad)]


@pytest.mark.parametrize("backend", ["flash", "cudnn"])
@pytest.mark.parametrize("name", [*MASKS, *LARGE])
@pytest.mark.usefixtures("varlen_on_cpu")
def test_output_and_gradients_equal_the_dense_masks(name: str, backend: str) -> None:
    mask = {**MASKS, **LARGE}[name]
    for reference, ours in zip(*(_results(each, mask, torch.float64) for each in ("dense", backend)), strict=True):
        assert torch.allclose(reference, ours, atol=1e-10), (reference - ours).abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("head", [64, 80, 128])
@pytest.mark.parametrize("backend", ["flash", "cudnn"])
@pytest.mark.parametrize("name", [*MASKS, *LARGE])
def test_the_kernels_gradients_lie_near_those_in_float64(
    name: str, backend: str, head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LONG", 20)
    mask = {**MASKS, **LARGE}[name]
    real_BL = real_tokens(mask).cuda()[:, None, :, None]
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, mask.length, head)
    given = [(torch.randn(shape, generator=generator) * size).to(torch.bfloat16) for size in (head**-0.5, 1, 1, 1)]
    found = []
    for chosen, dtype in (("dense", torch.float64), (backend, torch.bfloat16), (backend, torch.bfloat16)):
        q, k, v, wanted = (x.cuda().to(dtype) for x in given)
        for x in (q, k, v):
            x.requires_grad_()
        out = bind_mask(chosen, mask, q.device, dtype)(0, q, k, v)  # type: ignore[arg-type]
        (out * wanted * real_BL).sum().backward()
        found.append([x.detach() * real_BL for x in (out, q.grad, k.grad, v.grad) if x is not None])
    for reference, ours, again in zip(*found, strict=True):
        assert (reference - ours).norm() < 1e-2 * reference.norm()
        assert backend == "cudnn" or torch.equal(ours, again)
