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
from pretrain.evaluation.predictions import copied, score_continued, score_predictions, through_tokenizer
from pretrain.evaluation.set_scores import RealSet
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
    decoded = through_tokenizer(generator, real.frames)
    found = score_predictions(ScoringNetworks(tmp_path), generation, [0, 1], 5, decoded)
    assert found["predicted_frames"] == 4 and "lpips_alex" not in found["model"]
    true = real.frames[:, 5:]
    by_hand = [frame_scores.psnr(true, generation.predictions(seed, 5).frames[:, 5:]).numpy() for seed in (0, 1)]
    assert found["model"]["psnr"]["mean"] == pytest.approx(np.mean(by_hand))
    assert found["model"]["psnr"]["by_frame"] == pytest.approx(np.mean(by_hand, axis=(0, 1)))
    low, high = found["model"]["psnr"]["interval_seeds"]
    assert low <= found["model"]["psnr"]["mean"] <= high
    copy = frame_scores.psnr(true, real.frames[:, 4:5].expand_as(true)).numpy()
    assert found["copy_last_frame"]["psnr"]["mean"] == pytest.approx(copy.mean())
    tokens = frame_scores.psnr(true, decoded[:, 5:]).numpy()
    assert found["tokenizer"]["psnr"]["mean"] == pytest.approx(tokens.mean())
    better = [float((each.mean(1) > copy.mean(1)).mean()) for each in by_hand]
    assert found["better_share"]["mean"] == pytest.approx(np.mean(better))


def test_continued_clips_begin_with_the_real_frames(
    job: Config, generator: VideoGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored are the real beginning and what follows it, once a seed; continued by the truth itself, a clip would be the real one."""
    real = held(job, generator, 4)
    generation = Generation(generator, real, tmp_path / "videos")
    scored: list[tuple[str, list[torch.Tensor]]] = []
    monkeypatch.setattr(
        "pretrain.evaluation.predictions.score",
        lambda networks, target, sets, label: (scored.append((label, list(sets))), {"label": label})[1],
    )
    networks = ScoringNetworks(tmp_path)
    found = score_continued(networks, RealSet(real.frames, None, None), generation, [0, 1], 5, real.frames)
    assert found["known_frames"] == 5
    assert {name: found[name]["label"] for name in ("model", "copy_last_frame", "tokenizer")} == {
        "model": "continued clips", "copy_last_frame": "copied frames", "tokenizer": "tokenizer",
    }  # fmt: skip
    sets = dict(scored)
    assert all(torch.equal(clips[:, :5], real.frames[:, :5]) for each in sets.values() for clips in each)
    assert [len(each) for each in sets.values()] == [2, 1, 1]
    for seed, clips in enumerate(sets["continued clips"]):
        assert torch.equal(clips[:, 5:], generation.predictions(seed, 5).frames[:, 5:])
    (copy,) = sets["copied frames"]
    assert torch.equal(copy[:, 5:], real.frames[:, 4:5].expand(-1, 4, -1, -1, -1))
    assert torch.equal(sets["tokenizer"][0], real.frames)
