"""From shards to micro-batches: any number of ranks, corrupt samples, several data sets, reading ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.records import Bucket
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError
from pretrain.data.batch import Batch
from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import Curriculum, CurriculumStep
from pretrain.data.loader import Loader, LoaderConfig, StepData
from pretrain.data.sample_order import Draw, Order
from pretrain.data.token_datasets import DataError, TokenDatasets
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from tests.helpers import made_shards

BUCKET, LARGE = "f009x32x32", "f005x64x64"
CURRICULUM = Curriculum(
    CurriculumConfig(
        stages=(
            Stage(name="a", steps=6, mix=(Mix(bucket=BUCKET, batch=5, weight=2), Mix(bucket=BUCKET, frames=1, batch=3))),
            Stage(name="b", steps=2, mix=(Mix(bucket=LARGE, batch=4),)),
        )
    )
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_shards.make(tmp_path_factory.mktemp("data") / "shards", {BUCKET: 20, LARGE: 9})


def loader(
    datasets: TokenDatasets, *, rank: int = 0, world: int = 1, micro: int = 2, prefetch: int = 0, first: int = 1, pack: int = 0
) -> Loader:
    order = Order(3, CURRICULUM, {name: datasets.sources(name) for name in CURRICULUM.streams()}, 2)
    config = LoaderConfig(micro_batch=micro, text_length=16, pack_tokens=pack, prefetch=prefetch)
    text = TextTokenizer.make(ModelConfig())
    return Loader(datasets, order, text, config, rank=rank, world=world, steps=range(first, CURRICULUM.steps + 1))


def real(items: list[StepData]) -> list[tuple[str, int, bytes, bytes]]:
    """All samples that count, as (key, seed, bits, text), in no order."""
    found = []
    for item in items:
        for batch in item.batches:
            for i in range(batch.bits.shape[0]):
                if batch.weight[i]:
                    text = bytes(batch.text[i, : batch.text_length[i]].tolist())
                    found.append((batch.ids[i], int(batch.seeds[i]), batch.bits[i].numpy().tobytes(), text))
    return sorted(found)


def test_any_number_of_ranks_reads_the_same_global_batch(shards: Path) -> None:
    datasets = TokenDatasets.open([shards], CURRICULUM)
    alone = [loader(datasets).load(step) for step in range(1, CURRICULUM.steps + 1)]
    for world in (2, 3, 4):
        for step, item in enumerate(alone, start=1):
            parts = [loader(datasets, rank=rank, world=world).load(step) for rank in range(world)]
            assert real(parts) == real([item])
            assert {part.ids for part in parts} == {item.ids} and sorted(item.ids) == [key for key, *_ in real([item])]
            assert sum(part.tokens for part in parts) == item.tokens
            shapes = [[(batch.bits.shape, batch.text.shape, batch.grid) for batch in part.batches] for part in parts]
            assert all(shape == shapes[0] for shape in shapes)
            weights = sum(float(batch.weight.sum()) for part in parts for batch in part.batches)
            assert weights == pytest.approx(1.0, abs=1e-6)


def test_packed_steps_hold_the_same_global_batch_in_equal_rows(shards: Path) -> None:
    datasets = TokenDatasets.open([shards], CURRICULUM)
    for step in range(1, CURRICULUM.steps + 1):
        alone = loader(datasets).load(step)
        for world in (1, 2, 3):
            parts = [loader(datasets, rank=rank, world=world, pack=400).load(step) for rank in range(world)]
            assert real(parts) == real([alone]) and {part.ids for part in parts} == {alone.ids}
            rows = [[batch.row for batch in part.batches] for part in parts]
            assert all(row == rows[0] for row in rows) and max(max(row) for row in rows) <= 400
            assert sum(part.tokens for part in parts) == alone.tokens
            for batch in (batch for part in parts for batch in part.batches if batch.row):
                video = batch.grid[0] * datasets.spec.positions(*batch.grid[1:])
                assert sum(span + video for span in batch.spans) <= batch.row
                assert all(int(length) <= span for length, span in zip(batch.text_length, batch.spans, strict=True))
    assert any(batch.row for step in range(1, 7) for batch in loader(datasets, pack=400).load(step).batches)


def test_frames_takes_the_causal_prefix(shards: Path) -> None:
    datasets = TokenDatasets.open([shards], CURRICULUM)
    items = [loader(datasets).load(step) for step in range(1, 7)]
    whole = {key: bits for item in items if item.curriculum_step.mix.frames == 0 for key, _, bits, _ in real([item])}
    images = [entry for item in items if item.curriculum_step.mix.frames == 1 for entry in real([item])]
    size = datasets.spec.frame_bytes(4, 4)
    both = [(bits, whole[key]) for key, _, bits, _ in images if key in whole]
    assert both and all(bits == video[:size] for bits, video in both)


def test_reading_ahead_changes_nothing_and_starts_anywhere(shards: Path) -> None:
    datasets = TokenDatasets.open([shards], CURRICULUM)
    plain = [real([item]) for item in loader(datasets)]
    with loader(datasets, prefetch=3) as ahead:
        assert [real([item]) for item in ahead] == plain
    with loader(datasets, prefetch=1, first=5) as later:
        iterator = iter(later)
        assert real([next(iterator)]) == plain[4]
    assert not any(thread.name.startswith("loader") for thread in threading.enumerate())


def plain(item: StepData) -> tuple[object, ...]:
    """All that a step holds."""
    parts = [
        [value.view(torch.uint8).tolist() if isinstance(value, torch.Tensor) else value for value in vars(batch).values()]
        for batch in item.batches
    ]
    return item.curriculum_step.step, parts, item.ids, item.replaced, item.tokens, item.text, item.positions


@pytest.mark.parametrize("pack", [0, 400])
def test_a_step_does_not_depend_on_the_block_that_it_is_read_in(tmp_path: Path, pack: int) -> None:
    """Not with damage either, nor where only some of the samples have features."""
    one = made_shards.make(tmp_path / "one", {BUCKET: 20, LARGE: 9}, features=True)
    two = made_shards.make(tmp_path / "two", {BUCKET: 9, LARGE: 5}, salt="two")
    damage(one, BUCKET, 3)
    for folders in ([one], [one, two]):
        datasets = TokenDatasets.open(folders, CURRICULUM)
        for rank, world in ((0, 1), (1, 3)):
            made = loader(datasets, rank=rank, world=world, pack=pack)
            alone = [plain(made.load(step)) for step in made.steps]
            for size in (2, 3, 8):
                blocks = [made.steps[first : first + size] for first in range(0, len(made.steps), size)]
                assert [plain(item) for block in blocks for item in made.load_block(block)] == alone
            with loader(datasets, rank=rank, world=world, pack=pack, prefetch=5) as ahead:
                assert [plain(item) for item in ahead] == alone


def test_an_error_in_a_block_comes_at_the_step_that_it_belongs_to(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = TokenDatasets.open([shards], CURRICULUM)
    whole = Order.draw

    def draw(order: Order, at: CurriculumStep) -> Draw:
        if at.step == 6:
            raise DataError("step 6 cannot be read")
        return whole(order, at)

    monkeypatch.setattr(Order, "draw", draw)
    seen = []
    with loader(datasets, prefetch=8) as ahead, pytest.raises(DataError, match="step 6 cannot be read"):
        for item in ahead:
            seen.append(item.curriculum_step.step)
    assert seen == [1, 2, 3, 4, 5]


def test_any_error_of_the_thread_reaches_the_loop(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in reading ahead must not leave the training loop waiting for a thread that has died."""
    with loader(TokenDatasets.open([shards], CURRICULUM), prefetch=2) as ahead:
        monkeypatch.setattr(TokenDatasets, "find", lambda *given: {}["no such key"])
        with pytest.raises(KeyError, match="no such key"):
            list(ahead)


def damage(folder: Path, bucket: str, number: int) -> str:
    """Flip one byte of a sample's bits; returns its key."""
    dataset = ShardDataset.open(folder)
    row = dataset.rows(Bucket.parse(bucket)).slice(number, 1).to_pylist()[0]
    with (folder / f"{row['shard']}.tar").open("r+b") as file:
        file.seek(row["bits_offset"] + row["bits_size"] // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    return str(row["key"])


def test_corrupt_samples_are_replaced_by_the_same_rule_on_every_rank(tmp_path: Path) -> None:
    folder = made_shards.make(tmp_path / "shards", {BUCKET: 20, LARGE: 9})
    keys = ShardDataset.open(folder).rows(Bucket.parse(BUCKET))["key"].to_pylist()
    bad = [damage(folder, BUCKET, 3), damage(folder, BUCKET, 4)]
    datasets = TokenDatasets.open([folder], CURRICULUM)
    alone = [loader(datasets).load(step) for step in range(1, CURRICULUM.steps + 1)]
    replaced = [pair for item in alone for pair in item.replaced]
    # Rows 3 and 4 both give way to row 5, the next one that can be read.
    assert replaced and {key for _, key in replaced} == {keys[5]}
    assert all(key not in bad for key, *_ in real(alone))
    for world in (2, 3):
        parts = [[loader(datasets, rank=r, world=world).load(s) for s in range(1, CURRICULUM.steps + 1)] for r in range(world)]
        assert real([item for part in parts for item in part]) == real(alone)
        assert sorted(pair for part in parts for item in part for pair in item.replaced) == sorted(replaced)


def test_a_ruined_data_set_ends_with_a_clear_line(tmp_path: Path) -> None:
    folder = made_shards.make(tmp_path / "shards", {BUCKET: 4, LARGE: 4})
    for number in range(4):
        damage(folder, BUCKET, number)
    with (
        loader(TokenDatasets.open([folder], CURRICULUM), prefetch=2) as ahead,
        pytest.raises(DataError, match=r"shard-000000: sample .* 4 rows in a row are corrupt: run `videoar shards verify`"),
    ):
        list(ahead)


def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    folder = made_shards.make(tmp_path / "shards", {BUCKET: 20, LARGE: 9})
    (folder / BUCKET / "shard-000001.tar").unlink()
    with (
        loader(TokenDatasets.open([folder], CURRICULUM), prefetch=2) as ahead,
        pytest.raises(DatasetError, match=r"shard-000001\.tar: No such file or directory; `videoar shards verify` lists"),
    ):
        list(ahead)


def test_data_sets_join_into_one_epoch_or_alternate_by_weight(shards: Path, tmp_path: Path) -> None:
    more = made_shards.make(tmp_path / "more", {BUCKET: 10, LARGE: 3}, salt="more")
    stream = (BUCKET, 0)
    joined = TokenDatasets.open([shards, more], CURRICULUM)
    assert [source.rows for source in joined.sources(stream)] == [30]
    apart = TokenDatasets.open([shards, more], CURRICULUM, weights=(1.0, 3.0))
    assert [(source.rows, source.weight) for source in apart.sources(stream)] == [(20, 1.0), (10, 3.0)]
    assert joined.digest != apart.digest
    keys = set(pq.read_table(more / "index.parquet")["key"].to_pylist())
    for datasets, least in ((joined, 1), (apart, 10)):
        read = [key for step in range(1, 7) for key, *_ in real([loader(datasets).load(step)])]
        assert sum(key in keys for key in read) >= least


def test_features_come_along_where_the_shards_hold_them(tmp_path: Path) -> None:
    folder = made_shards.make(tmp_path / "shards", {BUCKET: 8, LARGE: 4}, features=True)
    dataset = ShardDataset.open(folder)
    whole = {sample.key: sample for sample in (dataset.read(Bucket.parse(BUCKET), number) for number in range(8))}
    assert all(
        dataset.read(Bucket.parse(BUCKET), number, meta=False) == replace(whole[key], meta={})
        for number, key in enumerate(dataset.rows(Bucket.parse(BUCKET))["key"].to_pylist())
    )
    made = loader(TokenDatasets.open([folder], CURRICULUM)).load(1).batches[0]
    assert made.features is not None and made.features.shape == (2, 3, 16, 4, 4) and made.features.dtype == torch.bfloat16
    for key, features in zip(made.ids, made.features, strict=True):
        assert features.contiguous().view(torch.uint8).numpy().tobytes() == whole[key].features


@pytest.fixture
def batch(shards: Path) -> Iterator[Batch]:
    yield loader(TokenDatasets.open([shards], CURRICULUM)).load(1).batches[0]


def test_bits_travel_as_bytes_and_text_is_padded(batch: Batch) -> None:
    assert batch.bits.dtype == torch.uint8 and batch.bits.shape == (2, 3 * made_shards.SPEC.frame_bytes(4, 4))
    assert batch.text.shape[1] % 8 == 0 and batch.text.shape[1] <= 16
    for i in range(2):
        assert (batch.text[i, batch.text_length[i] :] == 0).all()
