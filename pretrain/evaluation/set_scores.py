"""Scores of a set of videos against the real ones: FVD, its extrapolation, KVD, a frame-level Frechet distance, flicker and motion.

In:  clips uint8 (N,T,H,W,3), one set per seed, and the real clips' features.
Out: JSON values; a score that cannot be computed is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pretrain.evaluation import frame_scores, intervals
from pretrain.evaluation.networks import Features, ScoringNetworks
from tokenizer.evaluation.metrics import frechet
from tokenizer.evaluation.set_distances import FEWEST, extrapolated_frechet, kernel_distance

MOVES: dict[str, Callable[[Tensor], Tensor]] = {"motion": frame_scores.motion, "flicker": frame_scores.flicker}


@dataclass(frozen=True)
class RealSet:
    """The real clips that sets are scored against."""

    frames: Tensor
    video: Features | None
    picture: Features | None

    @classmethod
    def make(cls, networks: ScoringNetworks, frames_NTHWC: Tensor, label: str = "real clips") -> RealSet:
        """Compute the features, or read them from disk."""
        return cls(frames_NTHWC, networks.videos(frames_NTHWC, label), networks.frames(frames_NTHWC, label))


def score(networks: ScoringNetworks, real: RealSet, sets: Sequence[Tensor], label: str) -> dict[str, Any]:
    """Return the scores of one or more sets of equally many clips, one per seed: means over the seeds with 95 % intervals.

    `interval_clips` is of the first seed's set over clips, `interval_seeds` of the mean over seeds.
    """
    found: dict[str, Any] = {"clips": len(sets[0]), "real_clips": len(real.frames)}
    made = [RealSet.make(networks, frames, label) for frames in sets]
    videos = [(real.video, each.video) for each in made]
    pictures = [(real.picture, each.picture) for each in made]
    found["fvd"] = _distance(videos, frechet)
    found["fvd_extrapolated"] = _distance(videos, extrapolated_frechet, fewest=FEWEST, spread=False)
    found["kvd"] = _distance(videos, kernel_distance)
    found["frechet_vgg16_frames"] = _distance(pictures, frechet, rows=_rows(real.picture, real.frames))
    for name, measure in MOVES.items():
        values = [measure(frames).mean(1).numpy() if frames.shape[1] > 2 else np.empty(0) for frames in sets]
        found[name] = None if not values[0].size else {
            "mean": float(np.mean([each.mean() for each in values])),
            "interval_clips": intervals.of_mean(values[0]),
            "interval_seeds": intervals.of_seeds([float(each.mean()) for each in values]),
        }  # fmt: skip
    return found


def _distance(
    pairs: Sequence[tuple[Features | None, Features | None]],
    distance: Callable[[Features, Features], float],
    *,
    fewest: int = 2,
    spread: bool = True,
    rows: int = 1,
) -> dict[str, Any] | None:
    """Return a distance's mean over seeds and its intervals; None without features or with fewer than `fewest` rows.

    rows: of each clip.
    """
    whole = [(a, b) for a, b in pairs if a is not None and b is not None and min(len(a), len(b)) >= fewest]
    if len(whole) < len(pairs):
        return None
    values = [distance(a, b) for a, b in whole]
    return {
        "mean": float(np.mean(values)),
        "seeds": values,
        "interval_clips": intervals.of_distance(*whole[0], distance, rows=rows) if spread else None,
        "interval_seeds": intervals.of_seeds(values),
    }


def _rows(features: Features | None, clips: Tensor) -> int:
    return 1 if features is None else len(features) // len(clips)
