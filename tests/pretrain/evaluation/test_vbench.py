"""Samples as VBench looks for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.video import probe
from pretrain.evaluation import vbench
from pretrain.evaluation.held_out import EvaluationError
from pretrain.sampling.generate import VideoGenerator
from pretrain.sampling.guidance import SampleError


def test_prompts_of_vbenchs_own_file(tmp_path: Path) -> None:
    path = tmp_path / "VBench_full_info.json"
    entries = [
        {"prompt_en": "a toilet, frozen in time", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a bird", "dimension": ["object_class"]},
        {"prompt_en": "a bird", "dimension": ["subject_consistency"]},
    ]
    path.write_text(json.dumps(entries))
    assert vbench.read(path) == [vbench.Wanted("a toilet, frozen in time", 25), vbench.Wanted("a bird", 5)]
    path.write_text(json.dumps([{"prompt": "a bird"}]))
    with pytest.raises(EvaluationError, match=r"not VBench's VBench_full_info\.json"):
        vbench.read(path)


def test_videos_have_vbenchs_names_and_are_made_once(generator: VideoGenerator, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a bird\na cat\n")
    wanted = vbench.read(tmp_path / "p.txt", 2)
    files = vbench.make(generator, wanted, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "vbench").iterdir())
    assert names == ["a bird-0.mp4", "a bird-1.mp4", "a cat-0.mp4", "a cat-1.mp4"] == sorted(file.name for file in files)
    assert probe(files[0]).fps == pytest.approx(generator.fps)
    stamps = {file: file.stat().st_mtime_ns for file in files}
    lost = tmp_path / "out" / "vbench" / "a cat-0.mp4"
    lost.unlink()
    vbench.make(generator, wanted, tmp_path / "out")
    assert lost.exists() and all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items() if file != lost)
    assert json.loads((tmp_path / "out" / "vbench.json").read_text())["prompts"] == {"a bird": 2, "a cat": 2}


def test_prompts_that_are_no_names_or_too_long_are_named(generator: VideoGenerator, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("either/or\n")
    with pytest.raises(EvaluationError, match=r"p\.txt: `either/or` cannot be the name of a file"):
        vbench.read(tmp_path / "p.txt")
    with pytest.raises(SampleError, match=r"prompt 1: caption of 20 tokens"):
        vbench.make(generator, [vbench.Wanted("x" * 20, 1)], tmp_path / "out")
