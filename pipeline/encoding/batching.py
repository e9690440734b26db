"""DOC from pipeline/encoding/encoder.py."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from tokenizer.quantization.codec_spec import CodecSpec


class Codec(Protocol):
    """What encoding needs of tokenizer.codec.VideoCodec."""

    spec: CodecSpec

    def encode(self, frames_BTHWC: torch.Tensor) -> Any:
        """Frames uint8 (B,T,H,W,3) to packed `bits` uint8 (B, bytes) and `features` float32 (B,T',d,h,w)."""
