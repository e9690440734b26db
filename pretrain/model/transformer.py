"""The next-scale, next-frame transformer (paper A3): a LLaMA stack over text tokens and the scales of latent frames.

In:  text ids, and the accumulated features that each video token is fed.
Out: hidden states of all tokens, and from the head the bit logits of video tokens or their bit loss.

Legend: B samples, P text tokens (padded), N video tokens, L = P + N, C model width, A = 3 axes of positions, d bits per token, F values
that a video token is fed (d, or 2 d with model.previous_frame: every_scale).

    text ids ── text ───┐
                        ├─ blocks ─ norm ─ head ─▶ one logit per bit
    features ── word ───┘   (start token in the first frame's first scale; + scale embedding)

All parameters belong to submodules that every rank calls in the same order, so ZeRO-3 can gather them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.attention.attention import Attend
from pretrain.attention.token_layout import Layout
from pretrain.model import rope
from pretrain.model.bit_loss import bit_loss
from pretrain.model.config import ModelConfig
from pretrain.model.layers import Block, Embedding, Linear, RMSNorm, checkpointed


class BitHead(Linear):
    """One logit per bit; with labels, the fused loss."""

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


def fed_values(config: ModelConfig, bits: int) -> int:
    """Return how many values each video token is fed: accumulated features of its own frame, and perhaps of the previous one."""
    return 2 * bits if config.previous_frame == "every_scale" else bits


class VideoAR(nn.Module):
    """The transformer. vocabulary: text ids; the null token, if configured, is one more.

    The backward pass recomputes whole blocks if `activation_checkpointing` is set, and their norms, rotation and SwiGLU if
    `selective` is.
    """

    def __init__(self, config: ModelConfig, bits: int, vocabulary: int) -> None:
        super().__init__()
        self.config, self.bits, self.vocabulary = config, bits, vocabulary
        self.activation_checkpointing = self.selective = False
        self.text = Embedding(vocabulary + int(config.null_token), config.width, std=1.0)
        self.word = Linear(fed_values(config, bits), config.width, gain=bits**0.5)
        self.start = Embedding(1, config.width, std=1.0)
        self.scale = Embedding(config.max_scales, config.width, std=0.5) if config.scale_embedding else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.head = BitHead(config.width, bits)

    @property
    def null(self) -> int:
        """Id of the null token, which replaces an absent text."""
        assert self.config.null_token
        return self.vocabulary

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, also under ZeRO-3."""
        return self.word.weight.dtype

    def embed(self, text_BP: Tensor, features_BNF: Tensor, scale_N: Tensor, starts: bool) -> Tensor:
        """Return the embedded tokens (B, L, C).

        scale_N: scale number of each video token. starts: the first video token is the start token, whatever its features.
        """
        text_BPC = self.text(text_BP)
        video_BNC = self.word(features_BNF.to(self.dtype))
        start_1C = self.start(torch.zeros(1, dtype=torch.int64, device=text_BP.device))
        if starts:
            video_BNC = torch.cat((start_1C.expand(video_BNC.shape[0], 1, -1), video_BNC[:, 1:]), dim=1)
        if self.scale is not None:
            video_BNC = video_BNC + self.scale(scale_N)
        return torch.cat((text_BPC, video_BNC), dim=1)

    def positions(self, layout: Layout, text_length_B: Tensor) -> Tensor:
        """Return the rotary positions (B, L, A) of a layout, as this model is configured."""
        return rope.positions(layout, text_length_B, self.config.rope, self.config.rope_spatial)

    def forward(self, x_BLC: Tensor, positions_BLA: Tensor, attend: Attend) -> Tensor:
        """Return the normed hidden states (B, L, C) of embedded tokens."""
        cos_B1LP, sin_B1LP = rope.tables(positions_BLA, self.config)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                assert isinstance(block, Block)
                x_BLC = checkpointed(block, x_BLC, cos_B1LP, sin_B1LP, attend)
            else:
                x_BLC = block(x_BLC, cos_B1LP, sin_B1LP, attend, self.selective and torch.is_grad_enabled())
        out: Tensor = self.norm(x_BLC)[1]
        return out
