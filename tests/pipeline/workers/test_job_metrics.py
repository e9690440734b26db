"""What a job counts: planned and refused videos, committed shards, and videos that a decoding card left to the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.metrics import Meter
from pipeline.shards.commit_record import ShardInfo
from pipeline.workers.job_metrics import Fallbacks, count_plan, count_shard
from tests.helpers.plans import merged, plan


def value(meter: Meter, name: str, **labels: str) -> float | None:
    return meter.registry.get_sample_value(f"videoar_pipeline_{name}", labels)


def test_videos_are_counted_by_outcome_and_series_start_at_zero(tmp_path: Path) -> None:
    meter = Meter()
    count_plan(merged(tmp_path, [plan("a", [0, 1]), plan("bad", []), plan("c", [2])]), meter)
    assert (value(meter, "videos_total", outcome="planned"), value(meter, "videos_total", outcome="refused")) == (2, 1)
    assert [value(meter, f"{name}_total") for name in ("frames", "tokens", "shards_committed")] == [0, 0, 0]
    assert value(meter, "decoder_deaths_total", stage="encode") == 0


def test_a_committed_shard_is_counted_with_its_refusals() -> None:
    meter = Meter()
    info = ShardInfo("f005x16x16/shard-000000", 3, 15, 120, 999, "0" * 64, ({"reason": "killed"}, {"reason": "killed"}))
    count_shard(info, meter)
    count_shard(info, meter)
    assert [value(meter, f"{name}_total") for name in ("frames", "tokens", "shards_committed")] == [30, 240, 2]
    assert value(meter, "clips_total", outcome="encoded", reason="") == 6
    assert value(meter, "clips_total", outcome="refused", reason="killed") == 4


def test_each_codec_that_a_card_cannot_decode_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter()
    fallbacks = Fallbacks("cuda", meter)
    for stage in ("plan", "plan", "encode"):
        fallbacks.add(stage, {"h264": 2, "av1": 1})
    assert capsys.readouterr().out.splitlines() == [
        f"decode_device cuda: videos in {codec} that it cannot decode are decoded on the CPU" for codec in ("av1", "h264")
    ]
    assert value(meter, "software_decodes_total", stage="plan", codec="h264") == 4
