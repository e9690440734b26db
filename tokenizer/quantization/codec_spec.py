"""What the other packages need to know of a tokenizer: a few integers and a digest. No torch, so that readers start light."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenizer.quantization.scale_schedule import Scales, scales


class SpecError(ValueError):
    """A clip shape that a tokenizer cannot code, or values that are no spec."""


@dataclass(frozen=True)
class CodecSpec:
    """Shape contract between codec, shards and transformer; stored in tokenizer.json and dataset.json."""

    bits: int
    """d: bits per latent position."""
    spatial_stride: int
    """Pixels per latent position, along height and width."""
    temporal_stride: int
    """s: pixel frames per latent frame; 1 + s*n frames become 1 + n latent frames."""
    digest: str
    """sha256 (hex) over network configuration and weights."""
    scale_lists: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Scale lists that replace the schedule's, by latent grid such as `8x8`."""

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return (latent frames, rows, columns) of a clip. Raises SpecError for a shape that does not fit."""
        if frames < 1 or (frames - 1) % self.temporal_stride:
            raise SpecError(f"{frames} frames: a clip must have 1 + {self.temporal_stride}n frames")
        if height % self.spatial_stride or width % self.spatial_stride or height < 1 or width < 1:
            raise SpecError(f"{height}x{width} pixels: height and width must be multiples of {self.spatial_stride}")
        return 1 + (frames - 1) // self.temporal_stride, height // self.spatial_stride, width // self.spatial_stride

    def scales(self, rows: int, columns: int) -> Scales:
        """Return the scale list of a latent grid, the grid itself last."""
        listed = self.scale_lists.get(f"{rows}x{columns}")
        return tuple(listed) if listed is not None else scales(rows, columns)

    def positions(self, rows: int, columns: int) -> int:
        """Return how many positions, so tokens, one latent frame has over all scales."""
        return sum(r * c for r, c in self.scales(rows, columns))

    def frame_bytes(self, rows: int, columns: int) -> int:
        """Return how many packed bytes one latent frame has."""
        return self.positions(rows, columns) * self.bits // 8

    def plain(self) -> dict[str, Any]:
        """Return JSON values; `CodecSpec.parse` reads them back."""
        return asdict(self)

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> CodecSpec:
        """Read what `plain` returned. Raises KeyError or ValueError for values that are no spec."""
        lists = {str(k): tuple((int(r), int(c)) for r, c in v) for k, v in plain.get("scale_lists", {}).items()}
        for key in lists:
            if not re.fullmatch(r"\d+x\d+", key):
                raise SpecError(f"scale list `{key}`: the key must be a latent grid such as 8x8")
        return cls(
            bits=int(plain["bits"]),
            spatial_stride=int(plain["spatial_stride"]),
            temporal_stride=int(plain["temporal_stride"]),
            digest=str(plain["digest"]),
            scale_lists=lists,
        )
