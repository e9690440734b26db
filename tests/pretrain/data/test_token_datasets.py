"""Datasets that do not fit are refused by name, and the digest covers what is left to train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import Curriculum
from pretrain.data.sample_order import Slot
from pretrain.data.token_datasets import DataError, TokenDatasets
from tests.helpers import made_shards
from tokenizer.quantization.codec_spec import CodecSpec

BUCKET, LARGE = "f009x32x32", "f005x64x64"
CURRICULUM = Curriculum(
    CurriculumConfig(
        stages=(
            Stage(name="a", steps=6, mix=(Mix(bucket=BUCKET, batch=5),)),
            Stage(name="b", steps=2, mix=(Mix(bucket=LARGE, batch=4),)),
        )
    )
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_shards.make(tmp_path_factory.mktemp("data") / "shards", {BUCKET: 20, LARGE: 9})


def test_a_slot_has_one_key_caption_and_sample(shards: Path) -> None:
    datasets, stream = TokenDatasets.open([shards], CURRICULUM), (BUCKET, 0)
    assert datasets.rows(stream, 0) == 20 and datasets.grid(stream) == (3, 4, 4)
    for row in (0, 7, 19):
        slot = Slot(source=0, row=row, epoch=0)
        sample = datasets.read(stream, slot)
        assert (sample.key, sample.caption) == (datasets.key(stream, slot), datasets.caption(stream, slot))


def test_missing_bucket_other_tokenizer_and_no_folder_are_named(shards: Path, tmp_path: Path) -> None:
    small = made_shards.make(tmp_path / "small", {BUCKET: 3})
    with pytest.raises(DataError, match=f"bucket {LARGE} has no samples in .*small; buckets there: {BUCKET}"):
        TokenDatasets.open([small], CURRICULUM)
    spec = CodecSpec(bits=16, spatial_stride=8, temporal_stride=4, digest="1" * 64)
    other = made_shards.make(tmp_path / "other", {BUCKET: 3, LARGE: 3}, spec=spec)
    with pytest.raises(DataError, match=r"other: shards of another tokenizer \(111111111111\)"):
        TokenDatasets.open([shards, other], CURRICULUM)
    with pytest.raises(DataError, match=r"set curriculum\.shards"):
        TokenDatasets.open([], CURRICULUM)
    with pytest.raises(DataError, match="2 weights for 1 datasets"):
        TokenDatasets.open([shards], CURRICULUM, weights=(1.0, 2.0))


def test_excluded_sources_are_left_out_and_change_the_digest(tmp_path: Path) -> None:
    folder = made_shards.make(tmp_path / "shards", {BUCKET: 8, LARGE: 4})
    before = TokenDatasets.open([folder], CURRICULUM)
    gone = f"{BUCKET}-2.mp4"
    (folder / "excluded.json").write_text(f'["{gone}"]')
    after = TokenDatasets.open([folder], CURRICULUM)
    assert before.digest != after.digest
    assert after.sources((BUCKET, 0))[0].rows == 7
