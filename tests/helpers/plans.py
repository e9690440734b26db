"""Made-up plans of videos, and folders in which they are merged as a job does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.runtime.atomic_files import write_json
from pipeline.books.index import finish
from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.books.tasks import serially
from pipeline.config import PipelineConfig
from pipeline.maintenance.tally import tally_sources
from pipeline.records import Bucket, Reject, SourceVideo, VideoPlan
from pipeline.shards.manifest import Manifest
from pipeline.shards.writer import EncodedClip, write_shard
from tests.helpers.fakes import FakeCodec, clip

BUCKET = Bucket(frames=5, height=16, width=16)
SHARDS = [f"{BUCKET.name}/shard-00000{number}" for number in range(3)]
"""Shards of the `finished` folder."""


def plan(source: str, numbers: Sequence[int], digest: str = "") -> VideoPlan:
    """Return the plan of a video with one clip for each number, or a refused video for none."""
    digest = digest or source.encode().hex().ljust(32, "0")
    clips = tuple(replace(clip(number, source=source), source_digest=digest) for number in numbers)
    rejects = () if clips else (Reject(source, "probe", "unreadable", "broken"),)
    return VideoPlan(source, digest, clips, rejects)


def merged(folder: Path, plans: Sequence[VideoPlan], size: int = 2, **fields: object) -> Manifest:
    """Merge made-up plans as a new generation, `size` videos in a part."""
    manifest = Manifest(folder)
    generation = manifest.begin_generation([SourceVideo(p.source) for p in plans])
    parts = [plans[at : at + size] for at in range(0, len(plans), size)]
    for number, part in enumerate(parts):
        write_part(manifest.part(number), part)
    settings = PipelineConfig(clips_per_shard=3, min_free_gb=0, **fields)  # type: ignore[arg-type]
    merge(manifest, generation, settings, len(parts))
    return manifest


def finished(folder: Path) -> Path:
    """Make a finished folder: three shards of two videos, one refused video, one clip refused by the encoder."""
    manifest = merged(folder, [plan("v/a", [0, 1, 2, 3]), plan("bad", []), plan("v/b", [4, 5, 6])])
    spec = FakeCodec.spec
    plain = {"format": 1, "spec": spec.plain(), "fps": 8.0, "buckets": [BUCKET.name], "features": False}
    write_json(folder / "dataset.json", plain)
    size = 2 * spec.frame_bytes(2, 2)
    for group, (name,), _ in manifest.shards():
        clips = manifest.clips(group)
        rejects = [Reject(c.source, "encode", "damaged", "", c.begin, c.end) for c in clips if c.begin == 5]
        samples = [EncodedClip(c, bytes([round(c.begin)]) * size) for c in clips if c.begin != 5]
        write_shard(folder, name, samples, rejects, spec)
    finish(manifest)
    return folder


def outcomes(manifest: Manifest) -> tuple[int, int]:
    """Return the numbers of videos with planned clips, and with rejects only."""
    videos = tally_sources(manifest.folder, serially)
    return videos.known - videos.refused, videos.refused
