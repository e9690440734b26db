from __future__ import annotations

from pathlib import Path

import psutil

from pipeline.config import CutConfig, DecodeLimits
from pipeline.decoding.persistent import PersistentDecoder
from tests.helpers.scans import only


def test_the_child_serves_the_next_task_and_ends_when_idle(clips: Path) -> None:
    kept, limits = PersistentDecoder(0.2), DecodeLimits()
    with kept.use(limits) as decoder:
        decoder.scan(clips / "carphone_pristine.mp4", CutConfig(method="none"))
        first = decoder.pid
    with kept.use(limits) as decoder:
        assert decoder.pid == first is not None
    psutil.Process(first).wait(timeout=60)
    with kept.use(limits) as decoder:
        assert only(decoder.scan(clips / "carphone_pristine.mp4", CutConfig(method="none"))).times.size == 120
        assert decoder.pid != first
    with kept.use(DecodeLimits(max_frames=10)) as other:
        assert other is not decoder and other.limits.max_frames == 10
