"""The parts of the mask, merged: the same output and gradients as one softmax under the dense mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.model.attention import Mask, bind_mask
from pretrain.model.flash_attention import add_gathered, merge
from tests.helpers.masks import MASKS, qkv, real_tokens
from tests.helpers.varlen import varlen_on_cpu

__all__ = ["varlen_on_cpu"]


def _results(backend: str, mask: Mask, dtype: torch.dtype) -> list[Tensor]:
    q, k, v = qkv(mask, dtype)
    real_BL = real_tokens(mask)
    out = bind_mask(backend, mask)(0, q, k, v)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(9)
    wanted = torch.randn(out.shape, generator=generator).to(dtype) * real_BL[:, None, :, None]
    (out * wanted).sum().backward()
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return [x * real_BL[:, None, :, None] for x in (out.detach(), q.grad, k.grad, v.grad)]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.usefixtures("varlen_on_cpu")
def test_output_and_gradients_equal_the_dense_masks(name: str) -> None:
    for reference, ours in zip(*(_results(backend, MASKS[name], torch.float64) for backend in ("dense", "flash")), strict=True):
        assert torch.allclose(reference, ours, atol=1e-5), (reference - ours).abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("head", [64, 80, 128])
@pytest.mark.parametrize("name", MASKS)
def test_the_kernels_gradients_lie_near_those_in_float64(name: str, head: int) -> None:
    mask = MASKS[name]
    real_BL = real_tokens(mask).cuda()[:, None, :, None]
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, mask.length, head)
    given = [(torch.randn(shape, generator=generator) * size).to(torch.bfloat16) for size in (head**-0.5, 1, 1, 1)]
    found = []
    for backend, dtype in (("dense", torch.float64), ("flash", torch.bfloat16), ("flash", torch.bfloat16)):
        q, k, v, wanted = (x.cuda().to(dtype) for x in given)
        for x in (q, k, v):
            x.requires_grad_()
        out = bind_mask(backend, mask, q.device, dtype)(0, q, k, v)  # type: ignore[arg-type]
        (out * wanted * real_BL).sum().backward()
        found.append([x.detach() * real_BL for x in (out, q.grad, k.grad, v.grad) if x is not None])
    for reference, ours, again in zip(*found, strict=True):
        assert (reference - ours).norm() < 1e-2 * reference.norm()
        assert torch.equal(ours, again)


def test_merging_is_one_softmax_over_both_parts() -> None:
    scores, values = torch.randn(2, 5, 7), torch.randn(7, 2, 4)
    whole = torch.einsum("hqk,khd->qhd", scores.softmax(2), values)
    first = torch.einsum("hqk,khd->qhd", scores[..., :3].softmax(2), values[:3])
    there = torch.tensor([3, 1], dtype=torch.int32)  # only these queries have a second part
    second = torch.einsum("hqk,khd->qhd", scores[:, there.long(), 3:].softmax(2), values[3:])
    place = torch.tensor([2, 1, 2, 0, 2], dtype=torch.int32)
    out, lse = merge(first, scores[..., :3].logsumexp(2), second, scores[:, there.long(), 3:].logsumexp(2), place)
    assert torch.allclose(out[there.long()], whole[there.long()], atol=1e-6)
    assert torch.equal(out[[0, 2, 4]], first[[0, 2, 4]])
    assert torch.allclose(lse[:, there.long()], scores[:, there.long()].logsumexp(2), atol=1e-6)


def test_gathered_rows_are_added_at_all_their_places() -> None:
    gathered = torch.arange(6.0).view(3, 1, 2)
    places = torch.tensor([[0, 3, 1], [2, 3, 3]], dtype=torch.int32)
    found = add_gathered(torch.ones(3, 1, 2), gathered, places)
    assert found.flatten(1).tolist() == [[5.0, 7.0], [1.0, 1.0], [3.0, 4.0]]
