"""The section `model`: the shape of the transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cluster.config import Section


class ModelConfig(Section):
    """The VideoAR transformer (paper A3 and section 4.2)."""

    layers: int = Field(default=24, ge=1)
    """Transformer blocks."""
    width: int = Field(default=1536, ge=8)
    """Model width."""
    heads: int = Field(default=12, ge=1)
    """Attention heads; width / heads is the head dimension."""
    ffn: int = Field(default=0, ge=0)
    """Hidden width of the feed-forward (SwiGLU); 0 = 8/3 of the width, rounded up to a multiple of 64."""
    qk_norm: bool = True
    """Apply RMSNorm to queries and keys."""
    order: Literal["scales", "tokens"] = "scales"
    """What is predicted together. `scales`: all tokens of a scale, from what the coarser ones add up to (Eq. 5). `tokens`: one token
    after the other in the order of the layout, each fed the code of the one before it: plain next-token prediction, an ablation, with
    dense attention and without corruption."""
    rope_base: float = Field(default=10_000.0, gt=1)
    """Base of the rotary frequencies."""
    rope_split: tuple[float, float, float] = (0.25, 0.375, 0.375)
    """Shares of the head's frequency pairs for time, height and width; they add up to 1."""
    rope: Literal["multiscale", "flat"] = "multiscale"
    """`multiscale`: Multi-scale Temporal RoPE (Eq. 7); `flat`: 1D RoPE over the sequence, an ablation."""
    rope_spatial: Literal["raw", "aligned"] = "raw"
    """Spatial index of a token: its grid index at its own scale (Eq. 7), or rescaled to the largest grid."""
    scale_embedding: bool = True
    """Add a learned embedding per scale (s_k)."""
    max_scales: int = Field(default=16, ge=1)
    """Most scales that a frame may have: rows of the scale embedding."""
    previous_frame: Literal["first_scale", "every_scale"] = "first_scale"
    """Which scales of a frame are fed what the previous frame adds up to: the first one (the paper's F~_t^0), which is too coarse for the
    finest scale's bits, so that nothing of the model sees them any more; or every one, beside its own frame's coarser scales."""
    input_resize: Literal["linear", "area"] = "linear"
    """How accumulated features are resized to a scale's input: `linear`, as in Infinity (Eq. 6), or `area`, averages."""
    null_token: bool = True
    """A learned token that replaces an absent text; guidance needs it."""
    text_tokenizer: Literal["bytes"] | Path = "bytes"
    """`bytes`, or the path of a Hugging Face tokenizers JSON file."""
    text_length: int = Field(default=64, ge=1)
    """Most text tokens; longer captions are cut in training and refused in sampling."""
    attention: Literal["auto", "blocks", "flash", "cudnn", "dense"] = "auto"
    """Attention backend: `flash` runs FlashAttention kernels over the parts of the mask (a GPU, half precision); `cudnn` is `flash` but
    for runs of 4096 tokens and more, which are cuDNN's: twice as fast on Hopper cards, but the last bits of gradients vary from run to
    run, so a resume is exact to rounding only; `blocks` skips what the mask forbids (CPU); `dense` is the reference. `auto` takes
    `cudnn` on Hopper cards and newer, `flash` on other GPUs, `blocks` elsewhere."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the blocks with torch.compile: faster steps after some tens of seconds at the first start; `auto` does on a GPU and does
    not on a CPU, where it needs a C++ compiler."""

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must divide into {self.heads} heads of even dimension")
        if self.order == "tokens" and self.previous_frame != "first_scale":
            raise ValueError("order: tokens is fed codes alone; leave previous_frame at first_scale")
        if abs(sum(self.rope_split) - 1) > 1e-6:
            raise ValueError(f"rope_split must add up to 1, not {sum(self.rope_split)}")
        return self
