"""The element-wise parts, plain and compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pretrain.model import fused_ops
from pretrain.model.rope import rotate


def test_norm_of_bfloat16_is_made_in_float32() -> None:
    x, weight = torch.randn(5, 64), torch.rand(64)
    expected = F.rms_norm(x.bfloat16().float(), (64,), weight.bfloat16().float(), 1e-6).bfloat16()
    assert torch.equal(fused_ops.norm(x.bfloat16(), weight.bfloat16(), 1e-6), expected)


def test_split_heads_against_separate_steps() -> None:
    qkv, angles = torch.randn(2, 5, 3 * 16), torch.randn(2, 1, 5, 4)
    q_weight, k_weight = torch.rand(8), torch.rand(8)
    q, k, v = fused_ops.split_heads(qkv, q_weight, k_weight, angles.cos(), angles.sin(), 2, 1e-6)
    parts = [part.view(2, 5, 2, 8).transpose(1, 2) for part in qkv.split(16, dim=-1)]
    q_expected = rotate(F.rms_norm(parts[0], (8,), q_weight, 1e-6), angles.cos(), angles.sin()) / 8**0.5
    k_expected = rotate(F.rms_norm(parts[1], (8,), k_weight, 1e-6), angles.cos(), angles.sin())
    assert torch.allclose(q, q_expected, atol=1e-6) and torch.allclose(k, k_expected, atol=1e-6)
    assert torch.equal(v, parts[2])
    assert all(x.is_contiguous() for x in (q, k, v))
    bare = fused_ops.split_heads(qkv, None, None, angles.cos(), angles.sin(), 2, 1e-6)[1]
    assert torch.allclose(bare, rotate(parts[1], angles.cos(), angles.sin()), atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_equals_plain() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, weight = (torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((3, 16), (3, 16), (16,)))
    cases: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (fused_ops.add_norm, (x, y, weight, 1e-6)),
        (fused_ops.swiglu, (x,)),
    ]
    for function, arguments in cases:
        results = []
        for run in (function, fused_ops.compiled(function)):
            out = run(*arguments)
            total = sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,)))
            wanted = [a for a in arguments if isinstance(a, torch.Tensor)]
            results.append((total.detach(), *torch.autograd.grad(total, wanted)))  # type: ignore[union-attr, arg-type]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))
