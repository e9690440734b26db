"""DOC from cluster/metrics/meter.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepReport:
    """One training step, as it goes to the console, metrics.jsonl and Prometheus. Sums are over all ranks."""

    step: int
    """Optimizer step, counted from 1: the step that has just ended."""
    stage: int
    """Stage number, from 0."""
    stage_name: str
    bucket: str
    """Shape of the step's batch, such as f009x64x64."""
    loss: float
    """Nats a bit, weighted by scale; normalised over the global batch."""
    scale_loss: dict[str, float]
    """Plain mean nats a bit at each scale; the key is `HxW` of the scale."""
    bit_accuracy: dict[str, float]
    """Share of bits right at each scale; same keys."""
    grad_norm: float
    learning_rate: float
    tokens: int
    """Positions of this step, text and video, all ranks."""
    seconds: dict[str, float]
    """Seconds by phase: total, data, forward, backward, optimizer."""
    memory: dict[str, int]
    """Bytes by kind: resident, peak, device."""
    skipped: str = ""
    """Reason when the step changed no weight."""
    frame_loss: list[float] = field(default_factory=list)
    """Plain mean nats a bit at each latent frame."""
    sample_ids: list[str] = field(default_factory=list)
    """Keys of the global batch in order."""
    mfu: float = math.nan
