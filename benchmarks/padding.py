"""How much of what the ranks compute is padding, on a corpus of 1 to 65 frames and three resolutions?

    python benchmarks/padding.py [--ranks 2] [--tokens 65536] [--budget 16384]

A step takes samples of one bucket only, so video tokens need no padding; what is left is text (padded to the longest caption of
the global batch, in eights) and fill samples where the ranks do not divide the batch. 15 buckets, drawn equally often, each with
a global batch of about `--tokens` positions; captions as the tests' (0 to 24 bytes). `ours` packs samples into rows of up to
`--budget` tokens where more than 3 % would be padding; `plain` gives each sample a row of its own. Every position is counted
from the batches that the loader hands out. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.records import Bucket
from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import Curriculum
from pretrain.data.loader import Loader, LoaderConfig
from pretrain.data.sample_order import Order
from pretrain.data.token_datasets import TokenDatasets
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from tests.helpers import made_shards
from tokenizer.quantization.codec_spec import CodecSpec

SPEC = CodecSpec(bits=16, spatial_stride=16, temporal_stride=4, digest="0" * 64)
BUCKETS = [Bucket(frames=frames, height=side, width=side) for side in (64, 128, 256) for frames in (1, 5, 17, 33, 65)]


def length(bucket: Bucket) -> int:
    """Video tokens of a sample."""
    latents, rows, columns = SPEC.grid(bucket.frames, bucket.height, bucket.width)
    return latents * SPEC.positions(rows, columns)


@dataclass(frozen=True)
class Count:
    """Positions of one bucket, all ranks together."""

    real: int = 0
    shaped: int = 0
    packed: bool = False

    @property
    def padding(self) -> float:
        """Share of the computed positions that hold nothing."""
        return 1 - self.real / self.shaped


def count(datasets: TokenDatasets, curriculum: Curriculum, order: Order, ranks: int, budget: int) -> dict[str, Count]:
    """Load every step on every rank and count, by bucket."""
    found: dict[str, Count] = {}
    for rank in range(ranks):
        loader = Loader(
            datasets,
            order,
            TextTokenizer.make(ModelConfig()),
            LoaderConfig(micro_batch=4, text_length=64, pack_tokens=budget, pack_above=0.03),
            rank=rank,
            world=ranks,
            steps=range(1, curriculum.steps + 1),
        )
        for item in loader:
            video = item.batches[0].grid[0] * SPEC.positions(*item.batches[0].grid[1:])
            before = found.get(item.curriculum_step.mix.bucket, Count())
            shaped = sum(batch.row or batch.bits.shape[0] * (video + batch.text.shape[1]) for batch in item.batches)
            assert item.positions == shaped * ranks
            packed = bool(item.batches[0].row)
            found[item.curriculum_step.mix.bucket] = Count(before.real + item.tokens, before.shaped + shaped, packed)
    return found


def total(counts: dict[str, Count]) -> Count:
    """Sum over buckets."""
    return Count(sum(c.real for c in counts.values()), sum(c.shaped for c in counts.values()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--budget", type=int, default=16384)
    given = parser.parse_args()
    mix = tuple(Mix(bucket=bucket.name, batch=max(1, round(given.tokens / length(bucket)))) for bucket in BUCKETS)
    curriculum = Curriculum(CurriculumConfig(stages=(Stage(name="mixed", steps=2 * len(mix), mix=mix),)))
    with tempfile.TemporaryDirectory() as folder:
        shards = made_shards.make(Path(folder) / "shards", {bucket.name: 12 for bucket in BUCKETS}, spec=SPEC)
        datasets = TokenDatasets.open([shards], curriculum)
        order = Order(0, curriculum, {name: datasets.sources(name) for name in curriculum.streams()}, 16)
        plain = count(datasets, curriculum, order, given.ranks, 0)
        ours = count(datasets, curriculum, order, given.ranks, given.budget)
    assert {name: c.real for name, c in plain.items()} == {name: c.real for name, c in ours.items()}
    print(f"{given.ranks} ranks, about {given.tokens:,} positions a step, rows of up to {given.budget:,}")
    print("bucket            plain    ours")
    for name in plain:
        print(f"{name:14} {100 * plain[name].padding:6.2f} % {100 * ours[name].padding:6.2f} %{' packed' * ours[name].packed}")
    both = total(plain).padding, total(ours).padding
    print(f"all            {100 * both[0]:6.2f} % {100 * both[1]:6.2f} %  of {total(ours).shaped:,} positions")
    line = {"name": "padding", "unit": "share of positions", "ours": both[1], "plain": both[0], "ratio": both[1] / both[0]}
    print(json.dumps({**line, "limit": 0.0, "limit_share": 0.0}))


if __name__ == "__main__":
    main()
