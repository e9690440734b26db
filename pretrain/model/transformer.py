"""The next-scale, next-frame transformer (paper A3): a LLaMA stack over text tokens and the scales of latent frames.

In:  text ids and the accumulated features that feed each video token.
Out: hidden states of the video tokens, and from the head their bit logits or the bit loss.
Called by: pretrain.objective (training), pretrain.sample (generation), pretrain.export.

Legend: B samples, P text tokens (padded), N video tokens, L = P + N, C model width, d bits a token.

    text ids ── table ──┐
                        ├─ blocks ─ norm ─ head ─▶ one logit a bit
    features ── word ───┘   (SOS in the first frame's first scale; + scale embedding)

All parameters sit in submodules that are called in the same order on every rank, so ZeRO-3 can gather them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.model import rope
from pretrain.model.attention import Attend
from pretrain.model.bit_loss import bit_loss
from pretrain.model.config import ModelConfig
from pretrain.model.layers import Block, Linear, RMSNorm, Table, recomputed
from pretrain.model.token_layout import Layout


class BitHead(Linear):
    """One logit a bit; with labels, the fused loss."""

    def __init__(self, width: int, bits: int) -> None:
        super().__init__(width, bits, gain=0.5, bias=True)

    def forward(  # type: ignore[override]
        self, hidden_BNC: Tensor, labels_BNd: Tensor | None = None, weight_BN: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (loss, token loss, token accuracy) with labels, else (logits float32 (B, N, d), empty, empty)."""
        if labels_BNd is None or weight_BN is None:
            empty = hidden_BNC.new_empty(0)
            return super().forward(hidden_BNC).float(), empty, empty
        assert self.bias is not None
        return bit_loss(hidden_BNC, self.weight, self.bias, labels_BNd, weight_BN)


class VideoAR(nn.Module):
    """The transformer. The backward pass makes whole blocks again with `activation_checkpointing`, and their norms, rotation and
    SwiGLU with `selective`."""

    def __init__(self, config: ModelConfig, bits: int, vocabulary: int) -> None:
        super().__init__()
        self.config, self.bits, self.vocabulary = config, bits, vocabulary
        self.activation_checkpointing = self.selective = False
        self.text = Table(vocabulary + int(config.null_token), config.width, std=1.0)
        self.word = Linear(bits, config.width, gain=bits**0.5)
        self.start = Table(1, config.width, std=1.0)
        self.scale = Table(config.max_scales, config.width, std=0.5) if config.scale_embedding else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, compile=config.compile)
        self.head = BitHead(config.width, bits)

    @property
    def null(self) -> int:
        """Id of the null token, which stands for an absent condition."""
        assert self.config.null_token
        return self.vocabulary

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights (known under ZeRO-3 too)."""
        return self.word.weight.dtype

    def embed(self, text_BP: Tensor, features_BNd: Tensor, scale_N: Tensor, starts: bool) -> Tensor:
        """Return x (B, L, C). scale_N: scale number of each video token. starts: the first video token is SOS."""
        text = self.text(text_BP)
        video = self.word(features_BNd.to(self.dtype))
        start = self.start(torch.zeros(1, dtype=torch.int64, device=text_BP.device))
        if starts:
            video = torch.cat((start.expand(video.shape[0], 1, -1), video[:, 1:]), dim=1)
        if self.scale is not None:
            video = video + self.scale(scale_N)
        return torch.cat((text, video), dim=1)

    def forward(self, x_BLC: Tensor, positions_BL3: Tensor, attend: Attend) -> Tensor:
        """Return the normed hidden states (B, L, C) of embedded tokens at `positions_BL3`."""
        cos, sin = rope.tables(positions_BL3, self.config)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                assert isinstance(block, Block)
                x_BLC = recomputed(block, x_BLC, cos, sin, attend)
            else:
                x_BLC = block(x_BLC, cos, sin, attend, self.selective and torch.is_grad_enabled())
        out: Tensor = self.norm(x_BLC)[1]
        return out

    def positions(self, layout: Layout, text_length_B: Tensor) -> Tensor:
        """Return the rotary positions (B, L, 3) of a layout under this model's options."""
        return rope.positions(layout, text_length_B, self.config.rope, self.config.rope_spatial)
