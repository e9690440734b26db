"""The metrics of a job: what it counts of videos, clips and shards, and which videos a decoding card left to the CPU."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.metrics import Meter
from pipeline.books.tasks import Runner, serially
from pipeline.maintenance.tally import tally_sources
from pipeline.shards.commit_record import ShardInfo
from pipeline.shards.manifest import Manifest


def count_plan(manifest: Manifest, meter: Meter, run: Runner = serially) -> None:
    """Count the planned and refused videos of a folder, and start the series of the encoding stage at 0."""
    videos = tally_sources(manifest.folder, run)
    meter.inc("pipeline_videos_total", videos.known - videos.refused, outcome="planned")
    meter.inc("pipeline_videos_total", videos.refused, outcome="refused")
    for name in ("pipeline_frames_total", "pipeline_tokens_total", "pipeline_shards_committed_total"):
        meter.inc(name, 0)
    meter.inc("pipeline_decoder_deaths_total", 0, stage="encode")


def count_shard(info: ShardInfo, meter: Meter) -> None:
    """Count a committed shard. A resumed job first counts those that it finds, so that its series continue where they stopped."""
    meter.inc("pipeline_clips_total", info.samples, outcome="encoded", reason="")
    for reject in info.rejects:
        meter.inc("pipeline_clips_total", outcome="refused", reason=reject["reason"])
    meter.inc("pipeline_frames_total", info.frames)
    meter.inc("pipeline_tokens_total", info.tokens)
    meter.inc("pipeline_shards_committed_total")


class Fallbacks:
    """Counts the videos that a decoding card left to the CPU, and prints each video codec once."""

    def __init__(self, device: str, meter: Meter) -> None:
        self._device, self._meter = device, meter
        self._printed: set[str] = set()

    def add(self, stage: str, software: Mapping[str, int]) -> None:
        """Count the videos per video codec of one report."""
        for codec, videos in sorted(software.items()):
            self._meter.inc("pipeline_software_decodes_total", videos, stage=stage, codec=codec)
            if codec not in self._printed:
                self._printed.add(codec)
                print(
                    f"decode_device {self._device}: videos in {codec} that it cannot decode are decoded on the CPU", flush=True
                )
