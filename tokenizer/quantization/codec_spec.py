"""What everyone but the tokenizer itself needs to know of a tokenizer: a few integers and a digest.

No torch here: the index reader, the planner and the configuration use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenizer.quantization.scale_schedule import Scales, scales


@dataclass(frozen=True)
class CodecSpec:
    """Shape contract between codec, shards and transformer. Stored in tokenizer.json and dataset.json."""

    bits: int
    """d: bits a latent position."""
    spatial_stride: int
    """Pixels a latent position, along height and width."""
    temporal_stride: int
    """Pixel frames a latent frame; 1 + s*n frames make 1 + n latent frames."""
    digest: str
    """sha256 (hex) over network configuration and weights."""
    scale_lists: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Scale lists that replace the rule, keyed `HxW` of the latent grid."""

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return (latent frames, rows, columns) of a clip. Raises ValueError, naming the mend, for a shape that does not fit."""
        if frames < 1 or (frames - 1) % self.temporal_stride:
            raise ValueError(f"{frames} frames: a clip has 1 + {self.temporal_stride}n frames")
        if height % self.spatial_stride or width % self.spatial_stride or height < 1 or width < 1:
            raise ValueError(f"{height}x{width} pixels: height and width must be multiples of {self.spatial_stride}")
        return 1 + (frames - 1) // self.temporal_stride, height // self.spatial_stride, width // self.spatial_stride

    def frames(self, latents: int) -> int:
        """Pixel frames of `latents` latent frames."""
        return 1 + (latents - 1) * self.temporal_stride

    def scales(self, rows: int, columns: int) -> Scales:
        """Scale list of a latent grid: rows and columns of each scale, the grid itself last."""
        listed = self.scale_lists.get(f"{rows}x{columns}")
        return tuple(listed) if listed is not None else scales(rows, columns)

    def positions(self, rows: int, columns: int) -> int:
        """Tokens of one latent frame, over all scales."""
        return sum(r * c for r, c in self.scales(rows, columns))

    def frame_bytes(self, rows: int, columns: int) -> int:
        """Packed bytes of one latent frame."""
        return self.positions(rows, columns) * self.bits // 8

    def plain(self) -> dict[str, Any]:
        """JSON values; `CodecSpec.parse` reads them back."""
        return asdict(self)

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> CodecSpec:
        """Read `plain()`. Raises KeyError or ValueError for values that make no spec."""
        lists = {str(k): tuple((int(r), int(c)) for r, c in v) for k, v in plain.get("scale_lists", {}).items()}
        for key in lists:
            if not re.fullmatch(r"\d+x\d+", key):
                raise ValueError(f"scale list `{key}`: the key is a latent grid such as 8x8")
        return cls(
            bits=int(plain["bits"]),
            spatial_stride=int(plain["spatial_stride"]),
            temporal_stride=int(plain["temporal_stride"]),
            digest=str(plain["digest"]),
            scale_lists=lists,
        )
