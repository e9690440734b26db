"""Which shard group a span of clips goes to: a pure function of the corpus and the configuration, computed part by part.

In:  spans in the order of the corpus, the settings `pipeline.clips_per_shard` and `pipeline.shard_mb`.
Out: the weight of each span, and the group in which it lies.

The rule: a span weighs 1/clips_per_shard of a group, or its bytes/shard_mb where that is more, and never more than a whole group;
its group is the whole part of the weight of all spans before it. So a group ends after clips_per_shard spans, or where its largest
shard reaches shard_mb, to within one span. A sum of weights, not a filling of bins: any part of the corpus knows its groups from
one number, the weight before it. Weights are whole numbers, so that no sum is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.books.parts import Numbers
from pipeline.config import PipelineConfig
from pipeline.records import Bucket
from tokenizer.quantization.codec_spec import CodecSpec

FRAME_BYTES = 3584
"""Bytes of a sample in its tar beside bits and features: headers, padding, KEY.json and a caption (docs/data-format.md, Sizes)."""
FILE_ROWS = 1 << 17
"""Clips in a file of the table, about."""


@dataclass(frozen=True)
class Cut:
    """The rule with its settings."""

    spans: int
    """Most spans in a group."""
    limit: int
    """Most bytes in a shard, about."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of a sample by bucket; without them the bytes do not count."""
    buckets: int = 1

    @classmethod
    def of(cls, config: PipelineConfig, spec: CodecSpec | None) -> Cut:
        """Return the rule of a configuration. spec: of the tokenizer, which tells the size of a clip's tokens."""
        sizes = {} if spec is None else {b.name: sample_bytes(b, spec, features=config.features) for b in config.buckets}
        return cls(config.clips_per_shard, config.shard_mb * 1_000_000, sizes, len(config.buckets))

    @property
    def whole(self) -> int:
        """Weight of a full group."""
        return self.spans * self.limit

    @property
    def file_groups(self) -> int:
        """Groups in a file of the table of clips."""
        return max(1, FILE_ROWS // (self.spans * self.buckets))

    def weights(self, buckets: pa.ChunkedArray, starts: Numbers) -> Numbers:
        """Return the weight of each span. starts: first row of each span; buckets: of each row."""
        if not len(starts):
            return np.empty(0, np.int64)
        encoded = buckets.combine_chunks().dictionary_encode()
        known = np.array([self.sizes.get(name, 0) for name in encoded.dictionary.to_pylist()], np.int64)
        largest = np.maximum.reduceat(known[encoded.indices.to_numpy()], starts)
        found: Numbers = np.minimum(self.whole, np.maximum(self.limit, largest * self.spans))
        return found


def sample_bytes(bucket: Bucket, spec: CodecSpec, *, features: bool) -> int:
    """Return about how many bytes a clip takes in its shard, known before it is encoded."""
    latents, rows, columns = spec.grid(bucket.frames, bucket.height, bucket.width)
    floats = 2 * latents * spec.bits * rows * columns if features else 0
    return latents * spec.frame_bytes(rows, columns) + floats + FRAME_BYTES
