"""Bit loss: binary cross-entropy per bit, averaged over the bits of a token and weighted over tokens; fused with the head.

In:  hidden states, the head's weights, label bits, token weights.
Out: the weighted loss, and each token's loss and bit accuracy.

Legend: B samples, N video tokens, C model width, d bits per token.

The head's float32 logits exist for `CHUNK_TOKENS` tokens at a time only. The forward pass computes, chunk by chunk, the loss and
also its gradients to the hidden states and to the head, so the backward pass has nothing to recompute (and, under ZeRO-3, no
weight to gather again).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.attention.token_layout import Layout, sent

CPU = torch.device("cpu")
CHUNK_TOKENS = 2048
"""Tokens whose logits exist at the same time on a CPU: they stay in its cache."""
CHUNK_TOKENS_GPU = 64 * 1024
"""The same on a GPU, where every chunk costs launches: 12 MB of logits for 48 bits."""


def token_weights(layout: Layout, kind: str, device: torch.device = CPU) -> Tensor:
    """Return the weight of each token's loss, float32 (N) that sums to 1: `sqrt-area` ~ sqrt(area_K / area_k), or `uniform`."""
    return _token_weights(layout, kind, device)


@functools.lru_cache(maxsize=64)
def _token_weights(layout: Layout, kind: str, device: torch.device) -> Tensor:
    areas = [rows * columns for rows, columns in layout.scales]
    each = [(areas[-1] / area) ** 0.5 if kind == "sqrt-area" else 1.0 for area in areas]
    frame = torch.cat([torch.full((area,), weight, dtype=torch.float64) for area, weight in zip(areas, each, strict=True)])
    weights = frame.repeat(layout.frames)
    return sent((weights / weights.sum()).to(torch.float32), device)


def bit_loss(
    hidden_BNC: Tensor, weight_dC: Tensor, bias_d: Tensor, labels_BNd: Tensor, weight_BN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (sum over tokens of weight x bit loss, token loss (B, N), token bit accuracy (B, N)), all float32.

    labels_BNd: bool. Only the first result carries a gradient.
    """
    loss, token_loss, token_accuracy = _BitLoss.apply(  # type: ignore[no-untyped-call]
        hidden_BNC, weight_dC, bias_d, labels_BNd, weight_BN
    )
    return loss, token_loss, token_accuracy


class _BitLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_BNC: Tensor, weight_dC: Tensor, bias_d: Tensor, labels_BNd: Tensor, weight_BN: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden, labels, weight = hidden_BNC.flatten(0, 1), labels_BNd.flatten(0, 1), weight_BN.flatten()
        needs_grad = any(ctx.needs_input_grad)
        tokens, bits = labels.shape
        token_loss = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
        token_accuracy = torch.empty_like(token_loss)
        d_hidden = torch.empty_like(hidden) if needs_grad else None
        d_weight = torch.zeros_like(weight_dC, dtype=torch.float32) if needs_grad else None
        d_bias = torch.zeros_like(bias_d, dtype=torch.float32) if needs_grad else None
        chunk = CHUNK_TOKENS_GPU if hidden.is_cuda else CHUNK_TOKENS
        for begin in range(0, tokens, chunk):
            part = slice(begin, begin + chunk)
            logits = F.linear(hidden[part], weight_dC, bias_d).float()
            target = labels[part].float()
            token_loss[part] = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
            token_accuracy[part] = ((logits > 0) == labels[part]).float().mean(1)
            if d_hidden is not None and d_weight is not None and d_bias is not None:
                d_logits = (logits.sigmoid() - target) * (weight[part] / bits).unsqueeze(1)
                d_bias += d_logits.sum(0)
                d_logits = d_logits.to(hidden.dtype)
                d_hidden[part] = d_logits @ weight_dC
                d_weight += d_logits.t() @ hidden[part]
        ctx.gradients = (d_hidden, d_weight, d_bias)
        ctx.types = (weight_dC.dtype, bias_d.dtype)
        ctx.shape = hidden_BNC.shape
        shape = weight_BN.shape
        loss = (token_loss * weight).sum()
        token_loss, token_accuracy = token_loss.view(shape), token_accuracy.view(shape)
        ctx.mark_non_differentiable(token_loss, token_accuracy)
        return loss, token_loss, token_accuracy

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_loss: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        d_hidden, d_weight, d_bias = ctx.gradients
        return (
            (d_hidden * d_loss).to(d_hidden.dtype).view(ctx.shape),
            (d_weight * d_loss).to(ctx.types[0]),
            (d_bias * d_loss).to(ctx.types[1]),
            None,
            None,
        )
