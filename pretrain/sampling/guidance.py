"""Temporal-spatial adaptive guidance (paper A3, inference): how strongly the condition is pressed at each step.

Pure functions. Called by: pretrain.sample.

UCF-101: the first scale of each frame rises from 1 to 5 over the frames, then linearly to 10 inside the frame.
Text to video: 5 falls to 3 over frames and scales together: guidance (5, 3), end 3.
"""

from __future__ import annotations

from torch import Tensor

from pretrain.sampling.config import SampleConfig


def strength(config: SampleConfig, frame: int, frames: int, scale: int, scales: int) -> float:
    """Return the guidance of (frame, scale), both counted from 0; 1 is the plain conditional model."""
    first, last = config.guidance
    start = first + (last - first) * (frame / (frames - 1) if frames > 1 else 0.0)
    return start + (config.guidance_end - start) * (scale / (scales - 1) if scales > 1 else 0.0)


def needed(config: SampleConfig) -> bool:
    """Whether any step is guided: else the null half of the batch is left out."""
    return config.guidance != (1.0, 1.0) or config.guidance_end != 1.0


def guided(logits: Tensor, strength: float) -> Tensor:
    """Join the logits of the condition (first half of the batch) and of the null token (second half)."""
    condition, null = logits.chunk(2)
    return null + strength * (condition - null)
