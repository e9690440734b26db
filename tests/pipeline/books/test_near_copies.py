"""Spans that an earlier video shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.config import DecodeLimits, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, SourceVideo
from pipeline.shards.manifest import Manifest
from tests.helpers.near_copies import THRESHOLD, copy


@pytest.mark.parametrize("frames", [5, 17])
def test_near_copies_are_refused_span_by_span_across_generations(clips: Path, tmp_path: Path, frames: int) -> None:
    config = PipelineConfig(buckets=(Bucket(frames=frames, height=32, width=32),), near_dedup=THRESHOLD, min_free_gb=0)
    manifest = Manifest(tmp_path / "shards")
    again = copy(clips / "carphone_pristine.mp4", tmp_path / "again.mp4", skip=0.5)
    barred = copy(clips / "carphone_pristine.mp4", tmp_path / "barred.mp4", bars=(30, 30, 0, 0))
    with DecoderProcess(DecodeLimits()) as decoder:
        for path in (clips / "carphone_pristine.mp4", again, barred, clips / "bigbuckbunny.mp4"):
            generation = manifest.begin_generation([SourceVideo(str(path))])
            write_part(manifest.part(0), [plan_video(SourceVideo(str(path)), config, decoder)])
            merge(manifest, generation, config, 1)
    near = [r for r in manifest.rejects() if r.reason == "near_copy"]
    assert (
        {r.source for r in near} == {str(again), str(barred)}
        and near[0].begin == 0.0
        and near[0].scores["agreement"] >= THRESHOLD
    )
    assert {c.source for g in range(manifest.groups()) for c in manifest.clips(g)} == {
        str(clips / "carphone_pristine.mp4"),
        str(clips / "bigbuckbunny.mp4"),
    }
