"""Bytes a clip on disk: our shards against what others store, one .pt of float32 latents a clip.

    python benchmarks/shard_size.py

For each shape a shard of 64 clips is written by the real writer, from random bits (the worst case for zstandard) with a caption of
100 letters, once with packed bits alone and once with bfloat16 features too; beside it one `torch.save` of float32 features a
clip. Files are measured, the parquet beside the tar is counted. Prints a table and one JSON line.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from pipeline.records import Bucket, Clip, clip_key
from pipeline.shards.writer import EncodedClip, write_shard
from tokenizer.quantization.codec_spec import CodecSpec

SHAPES = (
    (Bucket(frames=9, height=64, width=64), 16, 8),
    (Bucket(frames=17, height=128, width=128), 48, 16),
    (Bucket(frames=17, height=256, width=256), 48, 16),
    (Bucket(frames=65, height=512, width=512), 48, 16),
)
CLIPS = 64


def main() -> int:
    rows = [measure(bucket, CodecSpec(bits, stride, 4, "0" * 64)) for bucket, bits, stride in SHAPES]
    print(
        "| clip | bits, packed | as a sample in our shard | with bfloat16 features | float32 features, one .pt a clip | ratio |"
    )
    print("|---|---|---|---|---|---|")
    for row in rows:
        ratio = row["pt"] / row["shard"]
        print(f"| {row['name']} | {row['bits']:,} | {row['shard']:,} | {row['feat']:,} | {row['pt']:,} | {ratio:.1f} |")
    middle = rows[2]
    result = {
        "name": "shard_bytes_a_clip",
        "unit": "bytes",
        "ours": middle["shard"],
        "plain": middle["pt"],
        "ratio": round(middle["pt"] / middle["shard"], 2),
        "limit": middle["bits"],
        "limit_share": round(middle["bits"] / middle["shard"], 3),
    }
    print(json.dumps(result))
    return 0


def measure(bucket: Bucket, spec: CodecSpec) -> dict[str, object]:
    latents, rows, columns = spec.grid(bucket.frames, bucket.height, bucket.width)
    size = latents * spec.frame_bytes(rows, columns)
    rng = np.random.default_rng(0)
    features = torch.randn(latents, spec.bits, rows, columns)
    stored = features.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    with tempfile.TemporaryDirectory(prefix="size-") as scratch:
        folder = Path(scratch)
        torch.save(features, folder / "clip.pt")
        found = {}
        for kind, extra in (("shard", None), ("feat", stored)):
            name = f"{bucket.name}/{kind}-000000"
            write_shard(
                folder, name, [EncodedClip(clip(i, bucket, name), rng.bytes(size), extra) for i in range(CLIPS)], [], spec
            )
            found[kind] = sum(path.stat().st_size for path in folder.glob(f"{name}.*")) // CLIPS
        pt = (folder / "clip.pt").stat().st_size
    shape = f"{bucket.frames} x {bucket.height} x {bucket.width}, d {spec.bits}, f{spec.spatial_stride}"
    return {"name": f"{shape} ({latents} x {rows} x {columns})", "bits": size, "pt": pt, **found}


def clip(number: int, bucket: Bucket, shard: str) -> Clip:
    digest = f"{number:032x}"
    key = clip_key(digest, float(number), 8.0, bucket)
    end = number + bucket.frames / 8
    return Clip(key, f"videos/{number:06d}.mp4", digest, float(number), end, 8.0, bucket, "a word" * 16, {"luma": 100.0}, shard)


if __name__ == "__main__":
    sys.exit(main())
