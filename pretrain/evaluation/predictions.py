"""How well the next frames of held-out clips are predicted: PSNR, SSIM and LPIPS by frame, FVD of the continued clips.

In:  held-out clips, predictions from their first frames, one set per seed.
Out: JSON values for the model, for copying the last given frame, and for the tokenizer (the true frames encoded and decoded: the best
     that is possible).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.runtime.progress import ProgressBar
from pretrain.evaluation import frame_scores, intervals
from pretrain.evaluation.generation import Generation
from pretrain.evaluation.networks import ScoringNetworks
from pretrain.evaluation.set_scores import RealSet, score
from pretrain.sampling.generate import VideoGenerator


def score_predictions(
    networks: ScoringNetworks, generation: Generation, seeds: list[int], known: int, decoded_NTHWC: Tensor
) -> dict[str, Any]:
    """Return the scores of the frames after the `known` ones. `better_share`: clips with a higher PSNR than copying.

    decoded_NTHWC: the held-out clips through the tokenizer, uint8.
    """
    real = generation.held_out.frames
    true = real[:, known:]
    sets = [generation.predictions(seed, known).frames[:, known:] for seed in seeds]
    copies = copied(real, known)
    with ProgressBar("scores of predicted frames", len(sets) + 2, stderr=True) as progress:
        scored = []
        for each in (*sets, copies, decoded_NTHWC[:, known:]):
            scored.append(_frames(networks, true, each))
            progress.update()
    *made, copy, tokens = scored
    better = [float((each["psnr"].mean(1) > copy["psnr"].mean(1)).mean()) for each in made]
    return {
        "known_frames": known,
        "predicted_frames": true.shape[1],
        "clips": len(real),
        "model": _summary(made),
        "copy_last_frame": _summary([copy]),
        "tokenizer": _summary([tokens]),
        "better_share": {"mean": float(np.mean(better)), "interval_seeds": intervals.of_seeds(better)},
    }


def score_continued(
    networks: ScoringNetworks, target: RealSet, generation: Generation, seeds: list[int], known: int, decoded_NTHWC: Tensor
) -> dict[str, Any]:
    """Return the scores of sets of clips whose first `known` frames are the real ones: FVD as it is reported for prediction.

    The real set is of the same clips, as in the protocols of BAIR and Kinetics-600: below what other real clips score. decoded_NTHWC: as
    for `score_predictions`.
    """
    real = generation.held_out.frames

    def continued(rest_NTHWC: Tensor) -> Tensor:
        return torch.cat((real[:, :known], rest_NTHWC), dim=1)

    predicted = [continued(generation.predictions(seed, known).frames[:, known:]) for seed in seeds]
    return {
        "known_frames": known,
        "model": score(networks, target, predicted, "continued clips"),
        "copy_last_frame": score(networks, target, [continued(copied(real, known))], "copied frames"),
        "tokenizer": score(networks, target, [continued(decoded_NTHWC[:, known:])], "tokenizer"),
    }


def copied(frames_NTHWC: Tensor, known: int) -> Tensor:
    """Return the last given frame, held for the rest of each clip."""
    return frames_NTHWC[:, known - 1 : known].expand(-1, frames_NTHWC.shape[1] - known, -1, -1, -1).contiguous()


def through_tokenizer(generator: VideoGenerator, frames_NTHWC: Tensor) -> Tensor:
    """Return clips encoded and decoded, uint8 of the same shape."""
    codec, shape = generator.codec, generator.bucket
    made = [codec.decode(codec.encode(clip).bits, shape.height, shape.width).cpu() for clip in frames_NTHWC.split(1)]
    return torch.cat(made)


def _frames(networks: ScoringNetworks, true: Tensor, made: Tensor) -> dict[str, Any]:
    """Return each score's values, float64 (N, T); without SSIM under 11 pixels, without LPIPS under 32 or without its weights."""
    side = min(true.shape[2:4])
    found = {"psnr": frame_scores.psnr(true, made).numpy()}
    if side >= 11:
        found["ssim"] = frame_scores.ssim(true, made).numpy()
    if side >= 32 and networks.lpips is not None:
        found["lpips_alex"] = frame_scores.lpips(networks.lpips, true, made).numpy()
    return found


def _summary(sets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean, intervals and means by frame of each score."""
    return {
        name: {
            "mean": float(np.mean([each[name].mean() for each in sets])),
            "interval_clips": intervals.of_mean(sets[0][name].mean(1)),
            "interval_seeds": intervals.of_seeds([float(each[name].mean()) for each in sets]),
            "by_frame": np.mean([each[name].mean(0) for each in sets], axis=0).tolist(),
        }
        for name in sets[0]
    }
