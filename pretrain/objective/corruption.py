"""DOC from pretrain/objective/teacher_forcing.py."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.objective import counter_rng
from pretrain.objective.config import ObjectiveConfig
from tokenizer.quantization.scale_schedule import Scales


def active(config: ObjectiveConfig) -> bool:
    """Whether the configuration corrupts anything."""
    return config.flip_max > 0 or config.flip_min > 0 or (config.flip_delta > 0 and config.flip_time_dependent)


def ratios(config: ObjectiveConfig, seeds_B: Tensor, frames: int, scales: int) -> Tensor:
    """Return the flip ratio of each sample, frame and scale, float32 (B, T, K) in [0, 1]."""
    drawn_BTK = counter_rng.uniform(seeds_B, counter_rng.RATIO, (frames, scales))
    delta = config.flip_delta if config.flip_time_dependent else 0.0
    found: list[Tensor] = []
    for frame in range(frames):
        low = torch.full_like(drawn_BTK[:, frame], min(1.0, config.flip_min + delta * frame))
        high = min(1.0, config.flip_max + delta * frame)
        if frame and config.flip_inherit:
            low[:, 0] = found[-1][:, -1]
        # A lower end above the upper one (flip_min > flip_max) leaves no range: the lower end holds.
        found.append(low + (high - low).clamp(min=0) * drawn_BTK[:, frame])
    return torch.stack(found, dim=1)


def flips(seeds_B: Tensor, ratios_BTK: Tensor, scales: Scales, d: int) -> list[Tensor]:
    """Return which bits turn, K bool maps (N, h, w, d): each bit alone, with its scale's ratio."""
    frames = ratios_BTK.shape[1]
    areas = torch.tensor([rows * columns for rows, columns in scales], device=ratios_BTK.device)
    ratio_BTS1 = ratios_BTK.repeat_interleave(areas, dim=2).unsqueeze(-1)
    turned_BTSd = counter_rng.uniform(seeds_B, counter_rng.FLIP, (frames, int(areas.sum()), d)) < ratio_BTS1
    parts = turned_BTSd.flatten(0, 1).split([int(area) for area in areas], dim=1)
    return [part.unflatten(1, scale) for part, scale in zip(parts, scales, strict=True)]
