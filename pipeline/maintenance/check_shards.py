"""The work of `videoar shards verify` and `digest`, in tasks: shards down to every byte, rows of the index, files of the books.

In:  a SHARDS folder and, for each task, some of its shard groups, shards or files.
Out: what is wrong, and spilled to a scratch folder: the shards' records, and the identities of samples, clips and sources that
     pipeline.maintenance.tally counts.

A finished task leaves its result beside its spill, with size and time of every file that it has read: a check that is killed goes on
with what it lacks, and reads anew what has changed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import DamagedFile, write_text
from pipeline.books.parts import read_table, write_table
from pipeline.maintenance.tally import REFUSED_KEY, SAMPLE_KEY, USED_SOURCE, Identities
from pipeline.records import Bucket
from pipeline.shards.commit_record import ShardInfo, read_info, tar_digest
from pipeline.shards.layout import INDEX, DatasetError, open_table
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import CorruptSample, read_sample
from pipeline.shards.schemas import ROWS
from tokenizer.quantization.codec_spec import CodecSpec

RECORD = pa.schema([("shard", pa.string()), ("samples", pa.int64()), ("tar_sha256", pa.string())])
"""What a task spills of each sound shard."""
Stamps = list[tuple[int, int]]
"""Size and time of each file that a task has read; (-1, -1) for one that is missing."""


@dataclass(frozen=True)
class Checked:
    """What a task has found of some shard groups."""

    problems: tuple[str, ...]
    damaged: tuple[str, ...]
    clips: int
    shards: int


def check_groups(folder: Path, groups: Sequence[tuple[int, Sequence[str], int]], out: Path) -> Checked:
    """Check every byte of some shard groups, given by number, names of shards and number of clips. Spills records and identities."""
    done = out.with_suffix(".json")
    stamps = _stamps(folder, [name for _, names, _ in groups for name in names])
    known = _known(done, stamps)
    if known is not None:
        return known
    spec = CodecSpec.parse(json.loads((folder / "dataset.json").read_text())["spec"])
    manifest = Manifest(folder)
    problems: list[str] = []
    damaged: list[str] = []
    records: list[tuple[str, int, str]] = []
    identities = Identities()
    for group, names, _ in groups:
        wanted = manifest.clips(group)
        planned = Counter(clip.shard for clip in wanted)
        keys_of = {name: {clip.key for clip in wanted if clip.shard == name} for name in names}
        for name in names:
            try:
                shard = check_shard(folder, name, spec)
            except CorruptSample as error:
                damaged.append(name)
                problems.append(str(error))
                continue
            rows = pq.read_table(folder / f"{name}.parquet", columns=["key", "source"])
            found = rows["key"].to_pylist()
            if shard.samples + len(shard.rejects) != planned[name] or not set(found) <= keys_of[name]:
                problems.append(
                    f"{name}: {planned[name]} clips planned, {shard.samples} encoded and {len(shard.rejects)} refused: the numbers do not add up"
                )
                damaged.append(name)
            identities.add(SAMPLE_KEY, found, name)
            identities.add(USED_SOURCE, rows["source"].unique().to_pylist())
            identities.add(REFUSED_KEY, [plain["key"] for plain in shard.rejects])
            records.append((name, shard.samples, shard.tar_sha256))
    write_table(out.with_suffix(".records.arrow"), pa.table(list(map(list, zip(*records))) or [[], [], []], schema=RECORD))
    write_table(out.with_suffix(".arrow"), identities.table())
    result = Checked(tuple(problems), tuple(damaged), sum(count for _, _, count in groups), len(records) + len(set(damaged)))
    write_text(done, json.dumps({"stamps": stamps, "found": asdict(result)}))
    return result


def _stamps(folder: Path, names: Sequence[str]) -> Stamps:
    found = []
    for name in names:
        for path in (folder / f"{name}.parquet", folder / f"{name}.tar"):
            try:
                stat = path.stat()
                found.append((stat.st_size, stat.st_mtime_ns))
            except FileNotFoundError:
                found.append((-1, -1))
    return found


def _known(done: Path, stamps: Stamps) -> Checked | None:
    """Return the result that a killed check has left, if nothing has changed since."""
    try:
        plain = json.loads(done.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return None  # half written by another program: checked anew
    if [tuple(each) for each in plain["stamps"]] != stamps:
        return None
    found = plain["found"]
    return Checked(tuple(found["problems"]), tuple(found["damaged"]), found["clips"], found["shards"])


def check_shard(folder: Path, name: str, spec: CodecSpec) -> ShardInfo:
    """Check every byte of one shard. Raises CorruptSample."""
    path, tar = folder / f"{name}.parquet", folder / f"{name}.tar"
    try:
        info = read_info(path)
        rows = pq.read_table(path).to_pylist()
    except FileNotFoundError as error:
        raise CorruptSample(f"{name}: not committed (no {path.name}); run the same `videoar tokenize` again") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptSample(f"{name}: {path.name} is damaged: {error}") from error
    if len(rows) != info.samples:
        raise CorruptSample(f"{name}: {path.name} has {len(rows)} rows, its record says {info.samples}")
    if not rows:
        return info
    if not tar.exists():
        raise CorruptSample(f"{name}: {tar.name} is missing; recompute it with `videoar tokenize --repair`")
    if tar.stat().st_size != info.tar_bytes:
        raise CorruptSample(
            f"{name}: {tar.name} has {tar.stat().st_size} bytes instead of {info.tar_bytes}; recompute it with `videoar tokenize --repair`"
        )
    for row in rows:
        sample = read_sample(tar, row, shard=name)
        bucket = Bucket.parse(row["bucket"])
        latents, height, width = spec.grid(bucket.frames, bucket.height, bucket.width)
        if len(sample.bits) != latents * spec.frame_bytes(height, width) or sample.meta["key"] != row["key"]:
            raise CorruptSample(f"{name}: sample {row['key']}: its content is not that of a {bucket.name} clip")
    if tar_digest(tar) != info.tar_sha256:
        raise CorruptSample(
            f"{name}: {tar.name} has another sha256 than its record; recompute it with `videoar tokenize --repair`"
        )
    return info


def same_rows(folder: Path, shards: Sequence[tuple[str, int]], first: int) -> bool:
    """Return whether the index holds exactly the committed rows of some neighbouring shards, from row `first` on."""
    index = open_table(folder, INDEX)
    assert index is not None
    total = sum(samples for _, samples in shards)
    rows = _Rows(index.runs(np.array([first]), np.array([first + total]), ROWS.names))
    for name, samples in shards:
        committed = pq.read_table(folder / f"{name}.parquet").replace_schema_metadata(None)
        if committed.num_rows != samples or not rows.next(samples).equals(committed.combine_chunks()):
            return False
    return True


class _Rows:
    """Rows that come in batches, taken in other numbers."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._held = ROWS.empty_table()

    def next(self, count: int) -> pa.Table:
        """Return the next rows: fewer than `count` at the end."""
        while self._held.num_rows < count and (batch := next(self._batches, None)) is not None:
            self._held = pa.concat_tables([self._held, pa.Table.from_batches([batch]).replace_schema_metadata(None)])
        found = self._held.slice(0, count).combine_chunks()
        self._held = self._held.slice(count)
        return found


def check_file(folder: Path, table: str, number: int) -> str:
    """Check a file of the books against its list; returns what is wrong with it, or an empty text."""
    try:
        opened = open_table(folder, table)
        return "" if opened is None else next(opened.check([number]), "")
    except (DatasetError, DamagedFile) as error:
        return str(error)


def tar_records(folder: Path, names: Sequence[str]) -> list[tuple[str, int, str]]:
    """Return name, samples and the sha256 of the present bytes of some shards. Raises DatasetError for one that is not committed."""
    found = []
    for name in names:
        if not (folder / f"{name}.parquet").exists():
            raise DatasetError(f"{folder}: {name} is not committed; run the same `videoar tokenize` again")
        samples = read_info(folder / f"{name}.parquet").samples
        found.append((name, samples, tar_digest(folder / f"{name}.tar") if samples else ""))
    return found


def records_of(spills: Sequence[Path]) -> pa.Table:
    """Return the records of all sound shards, sorted by name."""
    tables = [read_table(path.with_suffix(".records.arrow")) for path in spills]
    return pa.concat_tables([RECORD.empty_table(), *tables]).sort_by("shard").combine_chunks()
