"""Frame prediction against copying."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.config import Config
from pretrain.evaluation import frame_scores
from pretrain.evaluation.generation import Generation
from pretrain.evaluation.networks import ScoringNetworks
from pretrain.evaluation.predictions import copied, score_predictions, through_tokenizer
from pretrain.sampling.generate import VideoGenerator
from tests.pretrain.evaluation.test_held_out import held


def test_copying_holds_the_last_given_frame() -> None:
    clip = torch.arange(5).view(1, 5, 1, 1, 1).expand(1, 5, 2, 2, 3).to(torch.uint8)
    assert copied(clip, 2)[0, :, 0, 0, 0].tolist() == [1, 1, 1]


def test_scores_are_means_over_clips_frames_and_seeds(
    job: Config, generator: VideoGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOAR_CACHE", str(tmp_path / "no-weights"))
    real = held(job, generator, 4)
    generation = Generation(generator, real, tmp_path / "videos")
    found = score_predictions(ScoringNetworks(tmp_path), generation, [0, 1], 5)
    assert found["predicted_frames"] == 4 and "lpips_alex" not in found["model"]
    true = real.frames[:, 5:]
    by_hand = [frame_scores.psnr(true, generation.predictions(seed, 5).frames[:, 5:]).numpy() for seed in (0, 1)]
    assert found["model"]["psnr"]["mean"] == pytest.approx(np.mean(by_hand))
    assert found["model"]["psnr"]["by_frame"] == pytest.approx(np.mean(by_hand, axis=(0, 1)))
    low, high = found["model"]["psnr"]["interval_seeds"]
    assert low <= found["model"]["psnr"]["mean"] <= high
    copy = frame_scores.psnr(true, real.frames[:, 4:5].expand_as(true)).numpy()
    assert found["copy_last_frame"]["psnr"]["mean"] == pytest.approx(copy.mean())
    tokens = frame_scores.psnr(true, through_tokenizer(generator, real.frames)[:, 5:]).numpy()
    assert found["tokenizer"]["psnr"]["mean"] == pytest.approx(tokens.mean())
    better = [float((each.mean(1) > copy.mean(1)).mean()) for each in by_hand]
    assert found["better_share"]["mean"] == pytest.approx(np.mean(better))
