"""Checks of a SHARDS folder, down to every byte: `verify` and `digest`.

In:  a SHARDS folder, and who runs the tasks (pipeline.books.tasks).
Out: what is wrong with it, damaged shards by name, counts that add up; one digest over its content.

Memory follows the number of shards, not of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.runtime.atomic_files import DamagedFile
from pipeline.books.tasks import Runner, serially
from pipeline.maintenance.check_shards import check_file, check_groups, records_of, same_rows, tar_records
from pipeline.maintenance.tally import Tally, identity, scratch_of, spill_sources, total
from pipeline.shards.commit_record import dataset_digest
from pipeline.shards.dataset import open_folder
from pipeline.shards.layout import CLIPS, FINGERPRINTS, INDEX, REJECTS, DatasetError, open_table
from pipeline.shards.manifest import Manifest

TASK_CLIPS = 1 << 14
"""Clips of the shards that one task checks, about."""
TASK_SHARDS = 256
"""Shards of one other task."""
SCRATCH = ".verify"
"""Folder for what tasks spill; a check that is killed leaves it, and the next one goes on with it."""


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    problems: tuple[str, ...]
    """One line each; empty for a sound folder."""
    damaged: tuple[str, ...]
    """Names of damaged or missing shards, such as f017x128x128/shard-000003."""
    videos: int
    videos_used: int
    clips: int
    encoded: int
    refused_clips: int
    refused_videos: int
    shards: int

    @property
    def sound(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def verify(folder: str | Path, run: Runner = serially) -> Report:
    """Read every byte of a folder and check it against the plan, the commit records and the index.

    Checked: each planned shard is committed; each tar has its recorded sha256, and each member its checksum and length; each
    planned clip is either a sample or a reject; each video has an outcome; the index holds exactly the committed rows; the
    files of the books are those of their lists; the digest. Raises DatasetError for a folder that is not a dataset at all.
    """
    folder = Path(folder)
    info, _ = open_folder(folder)
    manifest = Manifest(folder)
    with scratch_of(folder, SCRATCH, "verified") as scratch:
        calls = [(folder, groups, scratch / f"groups-{groups[0][0]:09d}") for groups in _tasks(manifest)]
        found = list(run("shards", check_groups, calls))
        problems = [problem for each in found for problem in each.problems]
        damaged = list(dict.fromkeys(name for each in found for name in each.damaged))
        spills = [call[2] for call in calls]
        tally, lost = _tally(folder, spills, scratch, run)
        problems += tally.twice
        problems += [f"rejects: {name} is refused but was never planned" for name in lost[:1]]
        if not damaged:
            problems += _check_index(folder, info, records_of(spills), manifest, run)
        problems += _check_tables(folder, run)
    return Report(
        problems=tuple(problems),
        damaged=tuple(damaged),
        videos=tally.known,
        videos_used=tally.used,
        clips=sum(each.clips for each in found),
        encoded=tally.samples,
        refused_clips=tally.refused_clips,
        refused_videos=tally.refused,
        shards=sum(each.shards for each in found),
    )


def _tasks(manifest: Manifest) -> Iterator[list[tuple[int, tuple[str, ...], int]]]:
    """Yield the shard groups of each task."""
    held: list[tuple[int, tuple[str, ...], int]] = []
    clips = 0
    for group in manifest.shards():
        held.append(group)
        clips += group[2]
        if clips >= TASK_CLIPS:
            yield held
            held, clips = [], 0
    if held:
        yield held


def _tally(folder: Path, spills: Sequence[Path], scratch: Path, run: Runner) -> tuple[Tally, list[str]]:
    """Count what is in the whole folder. Returns also the sources that a shard refuses and that were never planned."""
    tally = total([*spills, *spill_sources(folder, (CLIPS, REJECTS), scratch, run)], run)
    lost: list[str] = []
    if tally.lost:
        wanted = set(tally.lost)
        for table in Manifest(folder).reject_tables(["source"]):
            lost += [name for name in table["source"].unique().to_pylist() if identity(name) in wanted]
    return tally, sorted(lost)


def _check_tables(folder: Path, run: Runner) -> list[str]:
    """Check every file of the books against the lists."""
    problems: list[str] = []
    calls = []
    for name in (CLIPS, REJECTS, FINGERPRINTS, INDEX):
        try:
            table = open_table(folder, name)
        except DatasetError as error:
            problems.append(str(error))
            continue
        calls += [(folder, name, number) for number in range(0 if table is None else len(table.files))]
    return problems + [problem for problem in run("books", check_file, calls) if problem]


def _check_index(folder: Path, info: dict[str, Any], records: pa.Table, manifest: Manifest, run: Runner) -> list[str]:
    wrong = f"the {INDEX} does not hold exactly the committed rows; delete it and run the same `videoar tokenize` again"
    samples = records["samples"].to_numpy()
    try:
        index = open_table(folder, INDEX)
        if index is None:
            return [f"the {INDEX} is missing: the job has not finished; run the same `videoar tokenize` again"]
        if index.rows != int(samples.sum()):
            return [wrong]
        held = np.flatnonzero(samples)
        firsts = np.cumsum(samples) - samples
        calls = []
        for at in range(0, len(held), TASK_SHARDS):
            mine = held[at : at + TASK_SHARDS]
            names = records["shard"].take(pa.array(mine)).to_pylist()
            calls.append((folder, list(zip(names, samples[mine].tolist(), strict=True)), int(firsts[mine[0]])))
        if not all(run("index", same_rows, calls)):
            return [wrong]
        recorded = index.meta["digest"]
    except DamagedFile as error:
        return [str(error)]
    except (pa.ArrowInvalid, KeyError) as error:
        return [f"the {INDEX} is damaged ({error}); delete it and run the same `videoar tokenize` again"]
    found = dataset_digest(info, _lines(records), manifest.reject_tables())
    if found != recorded:
        return [f"the {INDEX} records digest {recorded[:12]}, the content has {found[:12]}"]
    return []


def _lines(records: pa.Table) -> Iterator[tuple[str, int, str]]:
    for batch in records.to_batches(max_chunksize=1 << 12):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def digest(folder: str | Path, run: Runner = serially) -> str:
    """Return one sha256 over all committed content, computed from the current bytes of the tars.

    Raises DatasetError for an unfinished folder, CorruptSample for an unreadable commit record.
    """
    folder = Path(folder)
    info, _ = open_folder(folder)
    manifest = Manifest(folder)
    names = iter(sorted(name for _, names, _ in manifest.shards() for name in names))
    calls = []
    while some := list(islice(names, TASK_SHARDS)):
        calls.append((folder, some))
    records = (record for found in run("shards", tar_records, calls) for record in found)
    return dataset_digest(info, records, manifest.reject_tables())
