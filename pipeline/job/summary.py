"""The result of a tokenization job: counts over the whole folder, as values and as text.

In:  a finished folder, and what this run did.
Out: a `Summary`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.books.index import read_shard_list
from pipeline.books.tasks import Runner, serially
from pipeline.encoding.encoder import GroupReport
from pipeline.maintenance.tally import tally_sources
from pipeline.shards.commit_record import summed
from pipeline.shards.layout import CLIPS, open_table
from pipeline.shards.manifest import Manifest


@dataclass
class RunTotals:
    """What the workers of this run have done: the sums over their reports so far."""

    new_shards: int = 0
    refused: int = 0
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, report: GroupReport) -> None:
        """Count one finished group."""
        self.new_shards += len(report.infos)
        self.refused += summed(report.infos)["refused"]
        self.seconds.update(report.seconds)


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
    """Bytes of the tars."""
    rejects: dict[str, int]
    """Refused videos and spans by reason."""
    digest: str
    """One sha256 over all committed content."""
    new_shards: int
    """Committed by this run."""
    seconds: dict[str, float]
    """Wall-clock seconds of this run's actors: decode_wait, encode, write."""


def summarize(folder: Path, manifest: Manifest, run: RunTotals, digest: str, tasks: Runner = serially) -> Summary:
    """Count what a finished folder holds. Its books alone are read. tasks: what runs the counting of videos."""
    shards = read_shard_list(folder)
    sums = {name: sum(shards[name].to_pylist()) for name in ("samples", "frames", "tokens", "tar_bytes")}
    clips = open_table(folder, CLIPS)
    rejects = Counter(reason for table in manifest.reject_tables(["reason"]) for reason in table["reason"].to_pylist())
    videos = tally_sources(folder, tasks)
    return Summary(
        videos=videos.known,
        videos_used=videos.used,
        clips=0 if clips is None else clips.rows,
        encoded=sums["samples"],
        shards=shards.num_rows,
        tokens=sums["tokens"],
        frames=sums["frames"],
        bytes=sums["tar_bytes"],
        rejects=dict(sorted(rejects.items())),
        digest=digest,
        new_shards=run.new_shards,
        seconds={name: round(value, 3) for name, value in sorted(run.seconds.items())},
    )


def describe(summary: Summary) -> str:
    """Return the summary as a few lines of text."""
    plain = asdict(summary)
    refused = ", ".join(f"{count} {reason}" for reason, count in plain["rejects"].items()) or "none"
    return (
        f"videos: {summary.videos}, {summary.videos_used} of them used\n"
        f"clips: {summary.encoded} of {summary.clips} encoded; refused videos and spans: {refused}\n"
        f"shards: {summary.shards} ({summary.new_shards} new), {summary.tokens} tokens, {summary.bytes / 1e6:.1f} MB\n"
        f"digest: {summary.digest}"
    )
