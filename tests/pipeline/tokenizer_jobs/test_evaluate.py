"""A tokenizer on real videos: scores that are measured whatever was fetched, and side-by-side reconstruction."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from cluster.config import load
from pipeline.tokenizer_jobs import evaluate as module
from pipeline.tokenizer_jobs.evaluate import EvaluationError, evaluate, held_out_clips, quality, reconstruct, roundtrip, score
from pipeline.video import iter_frames, probe
from tests.helpers.tools import unfetched
from tokenizer.codec import VideoCodec
from tokenizer.config import TrainingBucket

NETWORKS = ("lpips-alex", "lpips-vgg", "i3d")


def test_reconstruct_writes_both_side_by_side(config: Path, clips: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "side.mp4"
    psnr = reconstruct(load(config), str(clips / "carphone_pristine.mp4"), output, seconds=2.0)
    assert 3 < psnr < 30
    info = probe(output)
    assert (info.height, info.width) == (32, 96)
    assert len(info.times) == 13, "16 frames asked for, 1 + 4n shown"
    reconstruct(load(config), str(clips / "carphone_pristine.mp4"), output, seconds=0.1, size=64, by_scale=True)
    info = probe(output)
    assert (info.height, info.width, len(info.times)) == (64, 64 * (1 + 6), 1), "original, five coarse depths, all six scales"
    with av.open(str(output)) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(float)
    panels = shown.reshape(64, 7, 64, 3).swapaxes(0, 1)
    codec = VideoCodec.load(tmp_path / "tokenizer")
    first = torch.from_numpy(next(iter_frames(clips / "carphone_pristine.mp4", 8.0, 64, 64))[1])[None, None]
    wanted = np.stack([codec.decode(codec.encode(first).bits, 64, 64, depth)[0, 0].numpy() for depth in range(1, 7)])
    nearest = [int(np.abs(wanted - panel).mean((1, 2, 3)).argmin()) for panel in panels[1:]]
    assert nearest == [0, 1, 2, 3, 4, 5], "each panel is its depth's own decoding, but for the mp4's losses"


def test_the_streamed_roundtrip_is_the_whole_one(config: Path, tmp_path: Path) -> None:
    codec = VideoCodec.load(tmp_path / "tokenizer")
    frames = np.random.default_rng(0).integers(0, 256, (41, 16, 16, 3), dtype=np.uint8)
    whole = codec.decode(codec.encode(torch.from_numpy(frames)[None]).bits, 16, 16)[0].numpy()
    difference = np.abs(whole.astype(int) - roundtrip(codec, frames))
    assert difference.max() <= 1


def real_clips(clips: Path, count: int = 3) -> torch.Tensor:
    bucket = TrainingBucket(frames=9, height=32, width=32, batch=1)
    return torch.stack(list(held_out_clips([str(clips / "carphone_pristine.mp4")], 8.0, bucket, count)))


def test_every_score_of_a_perfect_copy_and_of_a_brighter_one(clips: Path, scoring_networks: None) -> None:
    notes: list[str] = []
    real = real_clips(clips)
    real = real.clamp(max=245)
    perfect = quality(real, real, note=notes.append)
    assert perfect["psnr"] == 100 and perfect["ssim"] == pytest.approx(1)
    assert perfect["lpips_alex"] == perfect["lpips_vgg"] == 0 and perfect["rfvd"] == pytest.approx(0, abs=1e-3)
    brighter = quality(real, real + 10, note=notes.append)
    assert brighter["psnr"] == pytest.approx(20 * np.log10(255 / 10)) and 0.8 < brighter["ssim"] < 1
    assert brighter["lpips_alex"] == brighter["lpips_vgg"] == pytest.approx(10 / 127.5)
    assert brighter["rfvd"] == pytest.approx(27 * 10**2, rel=1e-3), "27 means that are 10 higher, the same covariance"
    assert not notes


def test_a_tokenizer_that_shows_the_mean_of_all_clips_explains_nothing() -> None:
    """Alike clips make its PSNR high: small things that move before one background, found on Freeway at 31.8 dB."""
    notes: list[str] = []
    real = torch.full((8, 9, 32, 32, 3), 100, dtype=torch.uint8)
    for number in range(8):
        real[number, :, 4 * number : 4 * number + 2, 3:5] = 140
    mean = real.double().mean(0).round().byte().expand_as(real)
    found = quality(real, mean, fvd=False, note=notes.append)
    assert found["psnr"] > 35 and found["explained"] == pytest.approx(0, abs=0.01)
    assert [note for note in notes if note.startswith("explained 0.00: ")]
    notes.clear()
    assert quality(real, real, fvd=False, note=notes.append)["explained"] == 1
    assert quality(real[:1], real[:1], fvd=False, note=notes.append)["explained"] is None, "one clip is its own mean"
    assert not [note for note in notes if "explained" in note]


@pytest.mark.skipif(unfetched(*NETWORKS), reason="scoring networks not fetched (`make setup` fetches them)")
def test_a_perfect_copy_scores_perfectly_on_true_networks(clips: Path) -> None:
    real = real_clips(clips, 2)
    scores = quality(real, real)
    assert scores["lpips_alex"] == scores["lpips_vgg"] == 0
    assert scores["rfvd"] < 1e-3


def test_scores_that_cannot_be_computed_are_null_and_the_reason_is_given(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available", lambda name: False)
    notes: list[str] = []
    real = real_clips(clips, 2)
    scores = quality(real, real, note=notes.append)
    assert scores["psnr"] == 100 and [scores[key] for key in ("lpips_alex", "lpips_vgg", "rfvd")] == [None] * 3
    assert len(notes) == 1 and "python -m tokenizer.evaluation.fetch`" in notes[0]
    assert quality(real[:, :5, :8, :8], real[:, :5, :8, :8], note=notes.append)["ssim"] is None
    assert "rFVD needs clips of at least 9 frames" in notes


def test_held_out_clips_do_not_overlap_and_take_videos_in_turn(clips: Path) -> None:
    names = [str(clips / name) for name in ("carphone_pristine.mp4", "carphone_distorted.mp4")]
    bucket = TrainingBucket(frames=5, height=16, width=16, batch=1)
    both = list(held_out_clips(names, 8.0, bucket, 4))
    first = list(held_out_clips(names[:1], 8.0, bucket, 2))
    assert len(both) == 4
    assert torch.equal(both[0], first[0])
    assert torch.equal(both[2], first[1])
    assert not torch.equal(first[0], first[1])


def test_scores_of_one_shape_count_bits(config: Path, tmp_path: Path, clips: Path) -> None:
    codec = VideoCodec.load(tmp_path / "tokenizer")
    bucket = TrainingBucket(frames=5, height=16, width=16, batch=1)
    chosen = list(held_out_clips([str(clips / "carphone_pristine.mp4")], 8.0, bucket, 2))
    figures = score(codec, chosen, fvd=False)
    assert figures["bits_per_frame"] == 5 * 8 * 2 / 5, "2x2 grid: 1 + 4 positions of 8 bits, 2 latents for 5 frames"
    assert figures["bits_per_pixel"] == pytest.approx(5 * 8 * 2 / (5 * 256))
    assert figures["rfvd"] is None
    assert list(figures["depth_psnr"]) == ["1x1", "2x2"]
    assert figures["depth_psnr"]["2x2"] == pytest.approx(figures["psnr"]) != figures["depth_psnr"]["1x1"]


def test_a_corpus_of_short_videos_cannot_be_scored(config: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no video of the corpus has 9 frames at 0\.1 fps; name longer videos"):
        evaluate(load(config, ["tokenizer.training.fps=0.1"]))
