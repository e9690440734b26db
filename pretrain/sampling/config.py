"""DOC from pretrain/engine/config.py."""

from __future__ import annotations

from pydantic import Field

from cluster.config import Section


class SampleConfig(Section):
    """`videoar sample` and samples in the loop."""

    guidance: tuple[float, float] = (1.0, 5.0)
    """Guidance of each frame's first scale: at the first frame, at the last frame (linear between)."""
    guidance_end: float = Field(default=10.0, ge=0)
    """Guidance of each frame's last scale (linear over the scales of a frame)."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the bit logits; 0 takes the likelier bit."""
    seed: int = 0
    """Seed of the samples."""
    fps: float = Field(default=8.0, gt=0)
    """Frames a second of the written videos."""
