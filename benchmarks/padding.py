"""How much of what the ranks compute is padding, on a corpus of 1 to 65 frames and three resolutions?

    python benchmarks/padding.py [--ranks 2] [--tokens 8192]

A step takes samples of one bucket only, so video tokens need no padding; what is left is text (padded to the longest caption of
the global batch, in eights) and fill samples where the ranks do not divide the batch. 15 buckets, drawn equally often, each with
a global batch of about `--tokens` positions; captions as the tests' (0 to 24 bytes). The plain alternative pads every sample of
a mixed batch to its longest. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pretrain"))

import made_shards

from pipeline.records import Bucket
from pretrain.config import CurriculumConfig, Mix, ModelConfig, Stage
from pretrain.curriculum import Curriculum
from pretrain.data import Corpus
from pretrain.loader import Loader
from pretrain.order import Order
from pretrain.text import TextTokenizer
from tokenizer.spec import CodecSpec

SPEC = CodecSpec(bits=16, spatial_stride=16, temporal_stride=4, digest="0" * 64)
BUCKETS = [Bucket(frames=frames, height=side, width=side) for side in (64, 128, 256) for frames in (1, 5, 17, 33, 65)]


def length(bucket: Bucket) -> int:
    """Video tokens of a sample."""
    latents, rows, columns = SPEC.grid(bucket.frames, bucket.height, bucket.width)
    return latents * SPEC.positions(rows, columns)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192)
    given = parser.parse_args()
    mix = tuple(Mix(bucket=bucket.name, batch=max(1, round(given.tokens / length(bucket)))) for bucket in BUCKETS)
    curriculum = Curriculum(CurriculumConfig(stages=(Stage(name="mixed", steps=2 * len(mix), mix=mix),)))
    real, shaped, lengths = 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        shards = made_shards.make(Path(folder) / "shards", {bucket.name: 12 for bucket in BUCKETS}, spec=SPEC)
        corpus = Corpus.open([shards], curriculum)
        order = Order(0, curriculum, {name: corpus.sources(name) for name in curriculum.streams()}, 16)
        for rank in range(given.ranks):
            loader = Loader(
                corpus,
                order,
                TextTokenizer.make(ModelConfig()),
                rank=rank,
                world=given.ranks,
                micro_batch=4,
                text_length=64,
                first_step=1,
                last_step=curriculum.steps,
                prefetch=0,
            )
            for item in loader:
                video = item.batches[0].grid[0] * SPEC.positions(*item.batches[0].grid[1:])
                real += item.tokens
                for batch in item.batches:
                    shaped += batch.bits.shape[0] * (video + batch.text.shape[1])
                    lengths += [video + int(text) for text, w in zip(batch.text_length, batch.weight) if w]
    ours = 1 - real / shaped
    plain = 1 - sum(lengths) / (len(lengths) * max(lengths))
    print(f"{len(BUCKETS)} buckets, {given.ranks} ranks, {len(lengths)} samples of {min(lengths)} to {max(lengths)} tokens")
    print(f"padding, text and fill samples: {100 * ours:6.2f} % of {shaped:,} positions")
    print(f"padding to the longest sample:  {100 * plain:6.2f} %")
    line = {"name": "padding", "unit": "share of positions", "ours": ours, "plain": plain, "ratio": ours / plain}
    print(json.dumps({**line, "limit": 0.0, "limit_share": 0.0}))


if __name__ == "__main__":
    main()
