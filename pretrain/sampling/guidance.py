"""The section `sample`: temperature, and temporal-spatial adaptive guidance (paper A3, inference), at each frame and scale.

Pure functions; importing this file loads no torch.

The paper's schedules. UCF-101: the first scale of each frame rises from 1 to 5 over the frames, and each frame's scales rise
linearly from there to 10. Text to video: from 5 to 3 over frames and scales together: guidance (5, 3), guidance_end 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.config import ConfigError, Section
from cluster.config.precision import Dtype

if TYPE_CHECKING:
    from torch import Tensor


class SampleError(ConfigError):
    """A request that cannot be sampled; the message says how to change it."""


class SampleConfig(Section):
    """`videoar sample`, and samples during training."""

    guidance: tuple[float, float] = (1.0, 5.0)
    """Guidance strength at each frame's first scale: of the first frame, and of the last (linear in between)."""
    guidance_end: float = Field(default=10.0, ge=0)
    """Guidance strength at each frame's last scale (linear over the scales of a frame)."""
    dtype: Dtype = "auto"
    """Data type of the transformer in `videoar sample`: bfloat16 where the hardware computes it, else float32. samples.json records it."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the bit logits, at each frame's first scale; 0 takes the more likely bit."""
    temperature_end: float | None = Field(default=None, ge=0)
    """Temperature at each frame's last scale (linear over the scales of a frame); unset: as at the first. Fine bits are drawn
    independently of each other, so that a lower one makes them agree, while the coarse scales keep what differs between samples."""
    seed: int = 0
    """Seed of the samples."""
    fps: float | None = Field(default=None, gt=0)
    """Frames per second of the written videos; unset: that of the clips that the model was trained on."""
    cuda_graphs: bool = True
    """On a GPU, `videoar sample` records the steps of a clip as CUDA graphs at the first clip of a shape and replays them: many times
    faster, after some tens of seconds. The same bits either way."""


def strength(config: SampleConfig, frame: int, frames: int, scale: int, scales: int) -> float:
    """Return the guidance strength at (frame, scale), both counted from 0; 1 is the plain conditional model."""
    first, last = config.guidance
    start = first + (last - first) * (frame / (frames - 1) if frames > 1 else 0.0)
    return start + (config.guidance_end - start) * (scale / (scales - 1) if scales > 1 else 0.0)


def temperature(config: SampleConfig, scale: int, scales: int) -> float:
    """Return the temperature of a scale, counted from 0; 0 takes the more likely bit."""
    if config.temperature_end is None or scales == 1:
        return config.temperature
    return config.temperature + (config.temperature_end - config.temperature) * (scale / (scales - 1))


def needed(config: SampleConfig) -> bool:
    """Return whether any step is guided; if not, the unconditional half of the batch is left out."""
    return config.guidance != (1.0, 1.0) or config.guidance_end != 1.0


def check(config: SampleConfig, *, null_token: bool, condition_drop: float, model: str) -> None:
    """Check that guidance, if any step is guided, has a trained null token. Raises SampleError. Whatever samples calls it.

    null_token, condition_drop: as the model was trained. model: its name in the message.
    """
    if not needed(config):
        return
    off = "set sample.guidance=[1,1] sample.guidance_end=1"
    if not null_token:
        raise SampleError(f"{model}: guidance needs a null token and this model has none (model.null_token is false): {off}")
    if condition_drop == 0:
        raise SampleError(
            f"{model}: trained with objective.condition_drop 0, so its null token is untrained and guidance cannot work: {off}"
        )


def guided(logits: Tensor, strength: float) -> Tensor:
    """Combine the logits of the condition (first half of the batch) with those of the null token (second half)."""
    condition, null = logits.chunk(2)
    return null + strength * (condition - null)
