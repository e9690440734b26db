"""Datasets that do not fit are refused by name, and the digest covers what is left to train on."""

from __future__ import annotations

import hashlib
import json
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.shards import shard_tables
from pipeline.shards.layout import excluded, hidden
from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import Curriculum, share
from pretrain.data.sample_order import Order, Slot
from pretrain.data.token_datasets import DataError, TokenDatasets
from tests.helpers import made_books, made_shards
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
    changed = [name for name, content in before.contents.items() if after.contents[name] != content]
    assert changed == [BUCKET], "bucket by bucket"
    (folder / "excluded.json").write_text(f'["{BUCKET}-3.mp4"]')
    other = TokenDatasets.open([folder], CURRICULUM)
    assert other.sources((BUCKET, 0))[0].rows == 7 and other.contents[BUCKET] != after.contents[BUCKET], "as many, but others"


STREAMS = ((BUCKET, 0), (BUCKET, 1), (LARGE, 0))


def plain_ids(folders: list[Path], weights: tuple[float, ...], curriculum: Curriculum, window: int) -> tuple[list[str], str]:
    """Keys of every slot of every step, in the plainest way: the books read whole, one sample after the other. And the digest."""

    def rows(folder: Path, bucket: str) -> list[tuple[str, str]]:
        table = pq.read_table(folder / "index.parquet").to_pylist()
        gone = excluded(folder)
        return [(row["shard"], row["key"]) for row in table if row["bucket"] == bucket and not hidden(row["source"], gone)]

    def digest_of(folder: Path) -> str:
        recorded = json.loads(pq.read_schema(folder / "index.parquet").metadata[b"videoar"])["digest"]
        gone = excluded(folder)
        return hashlib.sha256(json.dumps([recorded, gone]).encode()).hexdigest() if gone else str(recorded)

    held = {
        bucket: [[len(list(group)) for _, group in groupby(shard for shard, _ in rows(folder, bucket))] for folder in folders]
        for bucket in (BUCKET, LARGE)
    }
    keys = {bucket: [[key for _, key in rows(folder, bucket)] for folder in folders] for bucket in held}
    digest = hashlib.sha256(repr(([digest_of(folder) for folder in folders], weights)).encode())
    for bucket in sorted(held):
        for number, own in enumerate(keys[bucket]):
            digest.update(f"{bucket}:{number}:{tuple(held[bucket][number])}".encode() + "\n".join(own).encode())
    found = []
    for step in range(1, curriculum.steps + 1):
        at = curriculum.at(step)
        bucket = at.stream[0]
        for number in range(at.first_sample, at.first_sample + at.mix.batch):
            source, sizes, own = 0, list(chain(*held[bucket])), list(chain(*keys[bucket]))
            if weights:
                source, before = share(weights, number)
                number, sizes, own = before[source], held[bucket][source], keys[bucket][source]
            seed = (5, *f"{at.stream[0]}:{at.stream[1]}".encode(), source)
            epoch, position = divmod(number, len(own))
            order = np.random.default_rng((*seed, epoch, 0)).permutation(len(sizes))
            for place, begin in enumerate(range(0, len(order), window)):
                inside = [row for s in order[begin : begin + window] for row in range(sum(sizes[:s]), sum(sizes[: s + 1]))]
                if position < len(inside):
                    found.append(own[np.random.default_rng((*seed, epoch, 1, place)).permutation(inside)[position]])
                    break
                position -= len(inside)
    return found, digest.hexdigest()


@pytest.mark.parametrize("footer", [0, 1 << 30])
@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_steps_are_those_of_the_books_read_whole(
    tmp_path: Path, weights: tuple[float, ...], footer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several thousand rows in many shards, two datasets, an exclusion list, several epochs: keys and digest are as they were."""
    monkeypatch.setattr(shard_tables, "FOOTER", footer)
    one = made_books.make(tmp_path / "one", {BUCKET: 2000, LARGE: 90}, shard_rows=64)
    two = made_books.make(tmp_path / "two", {BUCKET: 500, LARGE: 31}, shard_rows=16, salt=1)
    gone = ["videos/000000003.mp4", *(f"videos/{number:09d}.mp4" for number in range(16, 48))]
    (two / "excluded.json").write_text(json.dumps(gone))
    mixes = (Mix(bucket=BUCKET, batch=97, weight=2), Mix(bucket=BUCKET, frames=1, batch=13), Mix(bucket=LARGE, batch=24))
    curriculum = Curriculum(
        CurriculumConfig(stages=(Stage(name="a", steps=90, mix=mixes), Stage(name="b", steps=9, mix=mixes[2:])))
    )
    datasets = TokenDatasets.open([one, two], curriculum, weights)
    order = Order(5, curriculum, {name: datasets.sources(name) for name in STREAMS}, 3)
    datasets.hold(order.window)
    ids, captions, epochs = [], {}, set()
    for step in range(1, curriculum.steps + 1):
        at = curriculum.at(step)
        drawn = order.draw(at)
        found = datasets.find(at.stream, drawn)
        ids += found.keys
        captions |= zip(found.keys, found.captions, strict=True)
        epochs |= {(at.stream, epoch) for epoch in drawn.epochs.tolist()}
    wanted, digest = plain_ids([one, two], weights, curriculum, order.window)
    assert ids == wanted and datasets.digests_as({}) == {"data_digest": digest}, "as earlier versions wrote it"
    assert {epoch for stream, epoch in epochs if stream == STREAMS[0]} >= {0, 1} and (STREAMS[2], 3) in epochs
    stored = [row for folder in (one, two) for row in pq.read_table(folder / "index.parquet").to_pylist()]
    assert captions.items() <= {row["key"]: row["caption"] for row in stored}.items()
    assert sum(source.rows for source in datasets.sources(STREAMS[0])) == 2500 - 4 - 4 * 32
