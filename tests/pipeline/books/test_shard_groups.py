from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.books.shard_groups import FRAME_BYTES, Cut, sample_bytes
from pipeline.config import PipelineConfig
from pipeline.records import Bucket
from tests.helpers.fakes import FakeCodec


def groups(cut: Cut, sizes: list[int]) -> list[int]:
    """The group of each of some spans of one clip."""
    named = Cut(cut.spans, cut.limit, {str(size): size for size in sizes})
    weights = named.weights(pa.chunked_array([[str(size) for size in sizes]]), np.arange(len(sizes)))
    return ((np.cumsum(weights) - weights) // named.whole).tolist()


def test_a_group_ends_by_spans_or_by_bytes() -> None:
    assert groups(Cut(3, 1000), [1] * 7) == [0, 0, 0, 1, 1, 1, 2]
    assert groups(Cut(100, 1000), [400] * 7) == [0, 0, 0, 1, 1, 2, 2], "of 1000 bytes, to within one span"
    assert groups(Cut(3, 1000), [5000, 1, 5000]) == [0, 1, 1], "no span is more than a group, so no number is left out"


def test_groups_are_contiguous_and_their_shards_bounded() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 900, 5000).tolist()
    found = np.array(groups(Cut(17, 4000), sizes))
    assert set(np.diff(found)) == {0, 1}
    assert max(np.bincount(found)) <= 17 and max(np.bincount(found, sizes)) < 4000 + 900


def test_the_size_of_a_sample_is_known_before_it_is_encoded() -> None:
    bucket, spec = Bucket(frames=5, height=16, width=16), FakeCodec.spec
    assert sample_bytes(bucket, spec, features=False) == 2 * spec.frame_bytes(2, 2) + FRAME_BYTES
    assert sample_bytes(bucket, spec, features=True) - sample_bytes(bucket, spec, features=False) == 2 * 2 * 8 * 2 * 2
    config = PipelineConfig(buckets=(bucket,), clips_per_shard=10, shard_mb=3)
    cut = Cut.of(config, spec)
    assert cut.whole == 30_000_000 and Cut.of(config, None).sizes == {}
