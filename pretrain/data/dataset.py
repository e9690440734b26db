"""What training needs of a folder of token shards: pipeline.shards.dataset.ShardDataset, or a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from pipeline.records import Bucket, TokenSample
from pipeline.shards.dataset import Payload
from pipeline.shards.sample_window import Places
from pretrain.data.sample_order import Numbers
from tokenizer.quantization.codec_spec import CodecSpec


class Dataset(Protocol):
    """One folder's samples, by bucket and number."""

    @property
    def spec(self) -> CodecSpec: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def fps(self) -> float: ...  # noqa: D102
    def buckets(self) -> list[Bucket]: ...  # noqa: D102
    def shard_rows(self, bucket: Bucket) -> Numbers: ...  # noqa: D102
    def contents(self, bucket: Bucket) -> str: ...  # noqa: D102
    def column(self, bucket: Bucket, name: str) -> Iterator[Any]: ...  # noqa: D102
    def hold(self, bucket: Bucket, shards: int) -> None: ...  # noqa: D102
    def find(self, bucket: Bucket, numbers: Numbers) -> Places: ...  # noqa: D102
    def read_many(self, places: Places, size: int, features: int) -> Payload | None: ...  # noqa: D102
    def read(self, bucket: Bucket, row: int, *, meta: bool = True) -> TokenSample: ...  # noqa: D102
