"""DOC from pretrain/engine/config.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.config import Section


class ObjectiveConfig(Section):
    """Corruption, masks and loss weights."""

    flip_min: float = Field(default=0.0, ge=0, le=1)
    """p_min of Eq. 8."""
    flip_max: float = Field(default=0.25, ge=0, le=1)
    """p_max of Eq. 8; 0 with flip_min and flip_delta 0 turns corruption off."""
    flip_delta: float = Field(default=0.01, ge=0)
    """delta of Eq. 8, a latent frame."""
    flip_time_dependent: bool = True
    """Ratios grow with time (false = the same range for every frame; ablation)."""
    flip_inherit: bool = True
    """A frame's first scale starts at the previous frame's last ratio (ablation)."""
    requantise: bool = True
    """Labels are re-quantised against the corrupted history (false = the stored bits; ablation)."""
    window: int = Field(default=0, ge=0)
    """Latent frames of history that a frame sees; 0 = all."""
    frame_mask: float = Field(default=0.0, ge=0, lt=1)
    """p_mask of Eq. 9: probability that a history frame is hidden, drawn a sample."""
    condition_drop: float = Field(default=0.1, ge=0, lt=1)
    """Probability that the text is replaced by the learned null token."""
    scale_weights: Literal["sqrt-area", "uniform"] = "sqrt-area"
    """Weight of a token's loss: sqrt(area_K / area_k), or 1."""
