"""Held-out clips are what was tokenized, and what cannot be scored is said in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cluster.config import Config
from pipeline.corpus.fetch import opened
from pipeline.records import Bucket
from pipeline.shards.dataset import ShardDataset
from pipeline.video import VideoError
from pretrain.data.config import CurriculumConfig
from pretrain.evaluation.held_out import EvaluationError, HeldOut, read
from pretrain.sampling.generate import VideoGenerator
from tests.helpers import eval_job, made_shards


def held(job: Config, generator: VideoGenerator, count: int, seed: int = 0, shape: Bucket = eval_job.BUCKET) -> HeldOut:
    folders = job.get(CurriculumConfig).validation
    datasets: dict[Path | str, ShardDataset] = {folder: ShardDataset.open(folder) for folder in folders}
    return read(datasets, generator.codec.spec, shape, count, seed=seed, video=opened)


def test_pixels_are_those_that_were_tokenized(job: Config, generator: VideoGenerator) -> None:
    found = held(job, generator, 20)
    assert len(found) == found.available == 12 and found.frames.shape == (12, 9, 32, 40, 3)
    assert torch.equal(generator.codec.encode(found.frames[:3]).bits, found.bits[:3])  # crop and times included
    assert len(set(found.keys)) == 12 and all(caption.startswith("clip ") for caption in found.captions)


def test_the_choice_is_the_seeds_and_begins_alike_for_any_count(job: Config, generator: VideoGenerator) -> None:
    few, many, other = held(job, generator, 4), held(job, generator, 8), held(job, generator, 8, seed=1)
    assert few.keys == many.keys[:4] and few.digest == many.part(0, 4).digest
    assert other.keys != many.keys


def test_longer_clips_are_cut(job: Config, generator: VideoGenerator) -> None:
    short = held(job, generator, 4, shape=Bucket.parse("f005x32x40"))
    whole = held(job, generator, 4)
    assert torch.equal(short.frames, whole.frames[:, :5])
    assert torch.equal(short.bits, whole.bits[:, : short.bits.shape[1]]) and short.bits.shape[1] < whole.bits.shape[1]


def test_what_cannot_be_scored(job: Config, generator: VideoGenerator, tmp_path: Path) -> None:
    spec = generator.codec.spec
    with pytest.raises(EvaluationError, match=r"0 clips of f017x32x40 or longer"):
        held(job, generator, 4, shape=Bucket.parse("f017x32x40"))
    with pytest.raises(EvaluationError, match=r"set curriculum\.validation"):
        read({}, spec, eval_job.BUCKET, 4, seed=0, video=opened)
    made_shards.make(tmp_path / "foreign", {"f009x32x40": 3}, spec=made_shards.SPEC)
    with pytest.raises(EvaluationError, match=r"foreign: shards of tokenizer 000000000000, the model's is"):
        read({"foreign": ShardDataset.open(tmp_path / "foreign")}, spec, eval_job.BUCKET, 4, seed=0, video=opened)


def test_a_source_that_is_gone_or_changed_is_named(generator: VideoGenerator, clips: Path, tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    shutil.copyfile(clips / "carphone_pristine.mp4", video)
    made_shards.of_clips(tmp_path / "shards", eval_job.encoded(generator.codec, video, 2), generator.codec.spec)
    datasets: dict[Path | str, ShardDataset] = {"shards": ShardDataset.open(tmp_path / "shards")}
    with video.open("ab") as file:
        file.write(b"more")
    with pytest.raises(VideoError, match=r"v\.mp4: has changed"):
        read(datasets, generator.codec.spec, eval_job.BUCKET, 2, seed=0, video=opened)
    video.unlink()
    with pytest.raises(VideoError, match=r"v\.mp4"):
        read(datasets, generator.codec.spec, eval_job.BUCKET, 2, seed=0, video=opened)
