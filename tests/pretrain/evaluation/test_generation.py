"""Videos are made once, by one process or by several, and are those of `videoar sample`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.config import Config
from pretrain.evaluation.generation import Generation, Part
from pretrain.evaluation.held_out import EvaluationError
from pretrain.sampling.generate import VideoGenerator
from tests.pretrain.evaluation.test_held_out import held


def test_a_second_start_makes_nothing_again(job: Config, generator: VideoGenerator, tmp_path: Path) -> None:
    real = held(job, generator, 5)
    first = Generation(generator, real, tmp_path, batch=2).samples(7)
    assert first.frames.shape == (5, 9, 32, 40, 3) and first.seconds > 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 3
    (lost,) = tmp_path.glob("samples-seed7-00001*")
    lost.unlink()
    again = Generation(generator, real, tmp_path, batch=2).samples(7)
    assert float((again.frames.float() - first.frames.float()).abs().mean()) < 0.5  # sums of floats in another order
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in files.items() if path != lost) and lost.exists()


def test_parts_together_make_the_whole(job: Config, generator: VideoGenerator, tmp_path: Path) -> None:
    real = held(job, generator, 5)
    sizes = [
        len(Generation(generator, real, tmp_path, batch=2, part=Part.parse(text)).predictions(0, 5).frames)
        for text in ("0/2", "1/2")
    ]
    assert sizes == [3, 2]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    whole = Generation(generator, real, tmp_path, batch=2).predictions(0, 5)
    assert whole.frames.shape[0] == 5 and stamps == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    # A prediction begins with the given frames, as the tokenizer shows them.
    shown = generator.codec.decode(generator.codec.encode(real.frames[:2, :5]).bits, 32, 40)
    assert int((whole.frames[:2, :5].int() - shown.int()).abs().max()) <= 1
    for text in ("2/2", "x/2", "1", "0/0"):
        with pytest.raises(EvaluationError, match=r"--part .*: write I/N"):
            Part.parse(text)


def test_extensions_go_on_from_the_samples(job: Config, generator: VideoGenerator, tmp_path: Path) -> None:
    made = Generation(generator, held(job, generator, 4), tmp_path, batch=4)
    videos = made.extensions(0, 2, 3).frames
    assert videos.shape[:2] == (2, 9 + 3 * (9 - generator.overlap(0)))
    assert torch.equal(videos[:, :9], made.samples(0).frames[:2])
