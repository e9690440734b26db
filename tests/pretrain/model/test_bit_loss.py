"""The fused bit loss equals the plain one, value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain.attention.token_layout import Layout
from pretrain.model.bit_loss import bit_loss, token_weights


def test_weights_sum_to_one_and_follow_the_root_of_the_area() -> None:
    layout = Layout(7, 3, ((1, 1), (2, 2), (4, 4)))
    weights = token_weights(layout, "sqrt-area")
    assert weights.shape == (63,) and float(weights.sum()) == pytest.approx(1)
    assert float(weights[0] / weights[5]) == pytest.approx(4)
    assert float(weights[21 + 1] / weights[21 + 5]) == pytest.approx(2)
    assert torch.allclose(token_weights(layout, "uniform"), torch.full((63,), 1 / 63))


@pytest.mark.parametrize("rows", [7, 4096])
def test_fused_equals_plain(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.model.bit_loss.CHUNK_TOKENS", rows)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 30, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(16, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(2, 30, 16, generator=generator) < 0.5
    token_weight = torch.rand(2, 30, generator=generator)
    logits = F.linear(hidden, weight, bias)
    expected_tokens = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none").mean(-1)
    expected = (expected_tokens * token_weight).sum()
    wanted = torch.autograd.grad(expected * 3, (hidden, weight, bias))
    found, tokens, accuracy = bit_loss(hidden, weight, bias, labels, token_weight)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert torch.allclose(tokens.double(), expected_tokens, atol=1e-6)
    assert torch.allclose(accuracy, ((logits > 0) == labels).float().mean(-1), atol=1e-6)
    assert not tokens.requires_grad and not accuracy.requires_grad
    for ours, theirs in zip(torch.autograd.grad(found * 3, (hidden, weight, bias)), wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_no_logits_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No float32 tensor of tokens x bits is made: the largest product of the head has CHUNK_TOKENS rows."""
    monkeypatch.setattr("pretrain.model.bit_loss.CHUNK_TOKENS", 16)
    seen: list[int] = []
    plain = F.linear

    def spy(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(x.shape[0])
        return plain(x, weight, bias)

    monkeypatch.setattr(F, "linear", spy)
    hidden = torch.randn(2, 50, 8, requires_grad=True)
    bit_loss(hidden, torch.randn(16, 8), torch.randn(16), torch.zeros(2, 50, 16, dtype=torch.bool), torch.ones(2, 50))[
        0
    ].backward()
    assert max(seen) == 16 and sum(seen) == 100
