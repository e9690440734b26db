"""DOC from pipeline/job/tokenize.py."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.metrics import Meter
from pipeline.shards.commit_record import ShardInfo
from pipeline.shards.manifest import Manifest

_COUNTED = ("pipeline_frames_total", "pipeline_tokens_total", "pipeline_shards_committed_total")


def _count_videos(manifest: Manifest, meter: Meter) -> None:
    used, refused = manifest.outcomes()
    meter.inc("pipeline_videos_total", used, outcome="planned")
    meter.inc("pipeline_videos_total", refused, outcome="refused")


def _publish(info: ShardInfo, meter: Meter) -> None:
    """Count a committed shard. A job that goes on counts what it finds first, so that its series go on where they stopped."""
    meter.inc("pipeline_clips_total", info.samples, outcome="encoded", reason="")
    for reject in info.rejects:
        meter.inc("pipeline_clips_total", outcome="refused", reason=reject["reason"])
    meter.inc("pipeline_frames_total", info.frames)
    meter.inc("pipeline_tokens_total", info.tokens)
    meter.inc("pipeline_shards_committed_total")


class Fallbacks:
    """Tells and counts what a decoding card has left to the CPU; each codec is told of once."""

    def __init__(self, device: str, meter: Meter) -> None:
        self._device, self._meter = device, meter
        self._told: set[str] = set()

    def add(self, stage: str, software: Mapping[str, int]) -> None:
        """Take the videos by codec of one report."""
        for codec, videos in sorted(software.items()):
            self._meter.inc("pipeline_software_decodes_total", videos, stage=stage, codec=codec)
            if codec not in self._told:
                self._told.add(codec)
                print(
                    f"decode_device {self._device}: videos in {codec} that it cannot decode are decoded on the CPU", flush=True
                )
