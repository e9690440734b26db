"""What a tokenization job made: counts over the whole folder, in figures and in words.

In:  the manifest of a folder whose shards are all committed.
Out: index.parquet and a `Summary`.
Called by: pipeline.ray_job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.encode import GroupReport
from pipeline.manifest import Manifest, summed
from pipeline.shards import ShardInfo, read_info


@dataclass(frozen=True)
class Summary:
    """Counts over the whole folder after the job."""

    videos: int
    """Videos with an outcome."""
    videos_used: int
    """Videos with at least one encoded clip."""
    clips: int
    """Clips planned."""
    encoded: int
    """Samples in the shards."""
    shards: int
    tokens: int
    frames: int
    bytes: int
    """Of the tars."""
    rejects: dict[str, int]
    """Refused videos and stretches by reason."""
    digest: str
    """One sha256 over all committed content."""
    new_shards: int
    """Committed by this run."""
    seconds: dict[str, float]
    """Wall-clock seconds of this run's actors: decode_wait, encode, write."""


def summarize(folder: Path, manifest: Manifest, reports: Sequence[GroupReport]) -> Summary:
    """Write index.parquet and count what the folder holds; `reports` are those of this run."""
    digest = manifest.finish()
    infos: list[ShardInfo] = []
    clips = 0
    for _, names, count in manifest.shards():
        clips += count
        infos += [read_info(folder / f"{name}.parquet") for name in names]
    sums = summed(infos)
    rejects = manifest.rejects()
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds.update(report.seconds)
    return Summary(
        videos=len(manifest.known()),
        videos_used=len(manifest.used()),
        clips=clips,
        encoded=sums["samples"],
        shards=len(infos),
        tokens=sums["tokens"],
        frames=sums["frames"],
        bytes=sums["bytes"],
        rejects=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        digest=digest,
        new_shards=sum(len(report.infos) for report in reports),
        seconds={name: round(value, 3) for name, value in sorted(seconds.items())},
    )


def describe(summary: Summary) -> str:
    """Return the summary as a few lines of text."""
    plain = asdict(summary)
    refused = ", ".join(f"{count} {reason}" for reason, count in plain["rejects"].items()) or "none"
    return (
        f"videos: {summary.videos}, {summary.videos_used} of them used\n"
        f"clips: {summary.encoded} of {summary.clips} encoded; refused videos and stretches: {refused}\n"
        f"shards: {summary.shards} ({summary.new_shards} new), {summary.tokens} tokens, {summary.bytes / 1e6:.1f} MB\n"
        f"digest: {summary.digest}"
    )
