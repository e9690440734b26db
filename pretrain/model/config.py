"""DOC from pretrain/engine/config.py."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cluster.config import Section


class ModelConfig(Section):
    """The VideoAR transformer (paper 4.2, decisions.md "Transformer")."""

    layers: int = Field(default=24, ge=1)
    """Blocks."""
    width: int = Field(default=1536, ge=8)
    """Model width C."""
    heads: int = Field(default=12, ge=1)
    """Attention heads; width / heads is the head dimension."""
    ffn: int = Field(default=0, ge=0)
    """Hidden width of SwiGLU; 0 takes 8/3 of the width, rounded up to a multiple of 64."""
    qk_norm: bool = True
    """RMSNorm on queries and keys."""
    rope_base: float = Field(default=10_000.0, gt=1)
    """Base of the rotary frequencies."""
    rope_split: tuple[float, float, float] = (0.25, 0.375, 0.375)
    """Share of the head's frequency pairs for t, h, w."""
    rope: Literal["multiscale", "flat"] = "multiscale"
    """`multiscale` is Multi-scale Temporal RoPE (Eq. 7); `flat` is 1D RoPE over the sequence, for ablation."""
    rope_spatial: Literal["raw", "aligned"] = "raw"
    """Spatial index: raw grid index at each scale (Eq. 7), or rescaled to the largest grid."""
    scale_embedding: bool = True
    """Learned embedding a scale (s_k)."""
    max_scales: int = Field(default=16, ge=1)
    """Rows of the scale embedding."""
    input_resize: Literal["linear", "area"] = "linear"
    """How accumulated features become a scale's input: `linear` as Infinity trains (Eq. 6), or `area` averages."""
    null_token: bool = True
    """A learned token that stands for an absent text; guidance needs it."""
    text_tokenizer: Literal["bytes"] | Path = "bytes"
    """`bytes`, or the path of a Hugging Face tokenizers JSON file."""
    text_length: int = Field(default=64, ge=1)
    """Longest text in tokens; longer captions are cut in training and refused in sampling."""
    attention: Literal["auto", "blocks", "flex", "dense"] = "auto"
    """Attention path: `blocks` skips what the mask forbids (CPU), `flex` is FlexAttention (GPU), `dense` the reference."""

    compile: bool = False
    """Compile the element-wise parts of a block with torch.compile: faster steps, some tens of seconds at the start, and a C++ compiler on a CPU."""

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must divide into {self.heads} heads of even dimension")
        if abs(sum(self.rope_split) - 1) > 1e-6:
            raise ValueError(f"rope_split must add up to 1, not {sum(self.rope_split)}")
        return self
