"""Encoding without Ray: real videos planned into a folder, and its groups encoded with the fake codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.tables import table_list
from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.config import PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.encoding.encoder import GroupEncoder
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, SourceVideo
from pipeline.shards.layout import CLIPS, REJECTS
from pipeline.shards.manifest import Manifest
from tests.helpers.fakes import FakeCodec

BUCKETS = (Bucket(frames=5, height=32, width=32), Bucket(frames=9, height=32, width=48))


def config(tmp_path: Path, **fields: object) -> PipelineConfig:
    return PipelineConfig(output=tmp_path / "shards", buckets=BUCKETS, clips_per_shard=3, batch=2, min_free_gb=0, **fields)  # type: ignore[arg-type]


def planned(folder: Path, videos: Sequence[Path], config: PipelineConfig, move: str = "") -> Path:
    """Plan real videos into `folder`; `move` names one that is planned and then gone."""
    manifest = Manifest(folder)
    for name in (CLIPS, REJECTS):
        table_list.remove(folder / name)
    sources = [SourceVideo(str(path)) for path in videos]
    generation = manifest.begin_generation(sources)
    with DecoderProcess(config.limits) as decoder:
        plans = [plan_video(video, config, decoder) for video in sources]
    if move:
        plans = [replace(plan, source=f"/gone/{move}") if plan.source.endswith(move) else plan for plan in plans]
    write_part(manifest.part(0), plans)
    merge(manifest, generation, config, 1)
    return folder


def encode_all(folder: Path, settings: PipelineConfig) -> tuple[FakeCodec, dict[str, bytes]]:
    codec = FakeCodec()
    encoder = GroupEncoder(folder, settings, codec)
    groups = Manifest(folder).groups()
    for group in range(groups):
        encoder.encode(group, group + 1 if group + 1 < groups else None)
    encoder.close()
    return codec, {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/shard-*"))}
