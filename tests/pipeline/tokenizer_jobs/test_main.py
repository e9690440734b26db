"""The tokenizer's jobs on real videos: side-by-side reconstruction, scores, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.config import load
from pipeline.tokenizer_jobs.evaluate import held_clips, score
from pipeline.tokenizer_jobs.main import main
from pipeline.tokenizer_jobs.reconstruct import reconstruct, roundtrip
from pipeline.video import probe
from tokenizer.codec import VideoCodec, save
from tokenizer.config import NetworkConfig, TrainingBucket
from tokenizer.evaluation.pretrained import available
from tokenizer.network.network import Network

NETWORK = NetworkConfig(bits=8, width=8, patch=2, multipliers=(1, 1, 1), blocks=1, groups=1)
CONFIG = """
run: {{dir: {folder}}}
corpus: {{videos: ["{clips}/carphone_pristine.mp4"]}}
tokenizer:
  weights: {folder}/tokenizer
  network: {{bits: 8, width: 8, patch: 2, multipliers: [1, 1, 1], blocks: 1, groups: 1}}
  loss: {{perceptual: 0.0, perceptual_net: none, gan: 0.0}}
  training:
    buckets: [{{frames: 9, height: 32, width: 48, batch: 1}}]
"""


@pytest.fixture
def config(tmp_path: Path, clips: Path) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, clips=clips))
    save(tmp_path / "tokenizer", NETWORK, Network(NETWORK).state_dict(), {})
    return path


def test_reconstruct_writes_both_side_by_side(config: Path, clips: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "side.mp4"
    psnr = reconstruct(load(config), str(clips / "carphone_pristine.mp4"), output, seconds=2.0)
    assert 3 < psnr < 30
    info = probe(output)
    assert (info.height, info.width) == (32, 96)
    assert len(info.times) == 13, "16 frames asked for, 1 + 4n shown"
    reconstruct(load(config), str(clips / "carphone_pristine.mp4"), output, seconds=0.1, size=64)
    assert (probe(output).height, len(probe(output).times)) == (64, 1)


def test_the_streamed_roundtrip_is_the_whole_one(config: Path, tmp_path: Path) -> None:
    codec = VideoCodec.load(tmp_path / "tokenizer")
    frames = np.random.default_rng(0).integers(0, 256, (41, 16, 16, 3), dtype=np.uint8)
    whole = codec.decode(codec.encode(torch.from_numpy(frames)[None]).bits, 16, 16)[0].numpy()
    difference = np.abs(whole.astype(int) - roundtrip(codec, frames))
    assert difference.max() <= 1


def test_evaluate_writes_the_figures(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "scores.json"
    assert main(["evaluate", "-c", str(config), "--clips", "2", "--json", str(report)]) == 0
    figures = json.loads(report.read_text())["f009x32x48"]
    assert figures["clips"] == 2
    spec = VideoCodec.load(tmp_path / "tokenizer").spec
    assert figures["bits_per_frame"] == pytest.approx(8 * spec.frame_bytes(4, 6) * 3 / 9)
    assert set(figures["bit_usage"]) >= {"1x1", "4x6"}
    assert 3 < figures["psnr"] < 30
    assert figures["encode_frames_per_second"] > 0
    if available("i3d"):
        assert figures["rfvd"] > 0
        assert figures["lpips_alex"] > 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["name"] == "tokenizer"


def test_a_perfect_copy_scores_perfectly(clips: Path) -> None:
    from pipeline.tokenizer_jobs.evaluate import quality

    bucket = TrainingBucket(frames=9, height=32, width=32, batch=1)
    real = torch.stack(list(held_clips([str(clips / "carphone_pristine.mp4")], 8.0, bucket, 2)))
    figures = quality(real, real)
    assert figures["psnr"] == 100
    assert figures["ssim"] == pytest.approx(1)
    assert figures["rfvd"] is None or figures["rfvd"] < 1e-3


def test_held_clips_do_not_overlap_and_take_videos_in_turn(clips: Path) -> None:
    names = [str(clips / name) for name in ("carphone_pristine.mp4", "carphone_distorted.mp4")]
    bucket = TrainingBucket(frames=5, height=16, width=16, batch=1)
    both = list(held_clips(names, 8.0, bucket, 4))
    first = list(held_clips(names[:1], 8.0, bucket, 2))
    assert len(both) == 4
    assert torch.equal(both[0], first[0])
    assert torch.equal(both[2], first[1])
    assert not torch.equal(first[0], first[1])


def test_errors_are_one_line_with_an_exit_code(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-c", str(config), "tokenizer.training.stepz=3"]) == 2
    assert "did you mean `steps`" in capsys.readouterr().err
    absent = f"tokenizer.weights={tmp_path / 'absent'}"
    assert main(["--local_rank=0", "evaluate", "-c", str(config), absent]) == 1
    assert "no tokenizer there" in capsys.readouterr().err
    assert (
        main(["reconstruct", "-c", str(config), "tokenizer.training.fps=4", "nowhere.mp4", "--output", str(tmp_path / "x.mp4")])
        == 1
    )
    assert "nowhere.mp4" in capsys.readouterr().err
    assert main(["evaluate", "-c", str(config), f"corpus.videos=[{tmp_path / 'none'}]"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_scores_of_one_shape_count_bits(config: Path, tmp_path: Path, clips: Path) -> None:
    codec = VideoCodec.load(tmp_path / "tokenizer")
    bucket = TrainingBucket(frames=5, height=16, width=16, batch=1)
    chosen = list(held_clips([str(clips / "carphone_pristine.mp4")], 8.0, bucket, 2))
    figures = score(codec, chosen, fvd=False)
    assert figures["bits_per_frame"] == 5 * 8 * 2 / 5, "2x2 grid: 1 + 4 positions of 8 bits, 2 latents for 5 frames"
    assert figures["bits_per_pixel"] == pytest.approx(5 * 8 * 2 / (5 * 256))
    assert figures["rfvd"] is None
