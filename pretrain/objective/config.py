"""The section `objective`: corruption, masks and loss weights; a stage of the curriculum may replace some of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.config import Section
from pretrain.data.config import Stage


class ObjectiveConfig(Section):
    """Corruption, masks and loss weights."""

    flip_min: float = Field(default=0.0, ge=0, le=1)
    """p_min of Eq. 8: the lower end of the range that a flip ratio is drawn from."""
    flip_max: float = Field(default=0.25, ge=0, le=1)
    """p_max of Eq. 8: the upper end. With flip_min, flip_max and flip_delta all 0 nothing is corrupted."""
    flip_delta: float = Field(default=0.01, ge=0)
    """delta of Eq. 8: how far both ends rise per latent frame."""
    flip_time_dependent: bool = True
    """Ratios grow with time by flip_delta (false: the same range for every frame, an ablation)."""
    flip_inherit: bool = True
    """The first scale of a frame draws its ratio from no less than the last ratio of the previous frame (false: an ablation)."""
    requantise: bool = True
    """Labels are re-quantized against the corrupted history (false: the stored bits, an ablation)."""
    window: int = Field(default=0, ge=0)
    """Latent frames of history that a frame attends to; 0 = all."""
    frame_mask: float = Field(default=0.0, ge=0, lt=1)
    """p_mask of Eq. 9: probability that a history frame is hidden, drawn per sample."""
    condition_drop: float = Field(default=0.1, ge=0, lt=1)
    """Probability that the text is replaced by the learned null token, for classifier-free guidance."""
    scale_weights: Literal["sqrt-area", "uniform"] = "sqrt-area"
    """Weight of a token's loss at scale k of K: proportional to sqrt(area_K / area_k), or equal."""


def stage_objective(stage: Stage, base: ObjectiveConfig) -> ObjectiveConfig:
    """Return `base` with the stage's own window, frame mask and corruption."""
    own = {name: getattr(stage, name) for name in ("window", "frame_mask", "flip_min", "flip_max", "flip_delta")}
    return base.model_copy(update={name: value for name, value in own.items() if value is not None})
