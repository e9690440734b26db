"""Counts over a whole folder that no task can make alone: samples that are twice, videos that are used, refusals that stand.

In:  spilled identities: what each task has met, as 16 bytes each.
Out: `Tally`. The identities are counted in as many portions as memory asks for, each a task of its own.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from cluster.runtime.file_lock import FileLock
from pipeline.books.parts import read_table, write_table
from pipeline.books.tasks import Runner
from pipeline.shards.layout import CLIPS, INDEX, REJECTS, DatasetError, open_table
from pipeline.shards.manifest import FROM_SHARDS

SAMPLE_KEY, REFUSED_KEY, USED_SOURCE, PLANNED_SOURCE, REFUSED_SOURCE, LATER_SOURCE = range(6)
"""What an identity is of: a sample, a clip that a shard refused, a source with samples, one with planned clips, one that planning refused,
one of which a shard refused clips."""
SCHEMA = pa.schema([("what", pa.uint8()), ("id", pa.binary(16)), ("name", pa.dictionary(pa.int32(), pa.string()))])
PORTION = 4_000_000
"""Identities that are counted at a time, about 150 MB."""


@dataclass(frozen=True)
class Tally:
    """Counts, of a portion or of all."""

    samples: int = 0
    """Different keys of samples."""
    refused_clips: int = 0
    """Clips that a shard refused and none holds."""
    used: int = 0
    """Sources with samples."""
    known: int = 0
    """Sources with an outcome of planning."""
    refused: int = 0
    """Sources that planning refused as a whole."""
    twice: tuple[str, ...] = ()
    """A problem for each sample that is in two shards; the first ones."""
    lost: tuple[bytes, ...] = ()
    """Sources that a shard refuses and that were never planned; the first ones."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


class Identities:
    """What a task has met."""

    def __init__(self) -> None:
        self._what: list[int] = []
        self._ids: list[bytes] = []
        self._names: list[str] = []

    def add(self, what: int, texts: Sequence[str], name: str = "") -> None:
        """Add identities; name: the shard that holds them."""
        self._what += [what] * len(texts)
        self._ids += [identity(text) for text in texts]
        self._names += [name] * len(texts)

    def table(self) -> pa.Table:
        """Return them as rows."""
        columns: list[Any] = [pa.array(self._what, pa.uint8()), pa.array(self._ids, pa.binary(16))]
        return pa.table([*columns, pa.array(self._names, pa.string()).dictionary_encode()], schema=SCHEMA)


def identity(text: str) -> bytes:
    """Return 16 bytes that stand for a text."""
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def sources_of(folder: Path, table: str, number: int, out: Path) -> None:
    """Spill the sources that a file of the table of clips, of rejects or of the index names."""
    opened = open_table(folder, table)
    assert opened is not None
    rows = opened.file(number).read(columns=["source", "stage"] if table == REJECTS else ["source"], use_threads=False)
    found = Identities()
    if table == REJECTS:
        later = pc.is_in(rows["stage"], value_set=pa.array(FROM_SHARDS))
        found.add(LATER_SOURCE, rows["source"].filter(later).unique().to_pylist())
        found.add(REFUSED_SOURCE, rows["source"].filter(pc.invert(later)).unique().to_pylist())
    else:
        found.add(PLANNED_SOURCE if table == CLIPS else USED_SOURCE, rows["source"].unique().to_pylist())
    write_table(out.with_suffix(".arrow"), found.table())


def spill_sources(folder: Path, tables: Sequence[str], scratch: Path, run: Runner) -> list[Path]:
    """Spill the sources that some tables of the books name, a task for each file. Returns the spills."""
    opened = {name: open_table(folder, name) for name in tables}
    calls = [
        (folder, name, number, scratch / f"{name}-{number:06d}")
        for name, table in opened.items()
        for number in range(0 if table is None else len(table.files))
    ]
    list(run("sources", sources_of, calls))
    return [call[3] for call in calls]


def total(spills: Sequence[Path], run: Runner) -> Tally:
    """Count what was spilled, a task for each portion."""
    of = portions(spills)
    return sum(run("counts", count, [(spills, portion, of) for portion in range(of)]), Tally())


def tally_sources(folder: Path, run: Runner, scratch: str = ".count") -> Tally:
    """Count the videos of a folder by its books alone: with an outcome, refused, used. scratch: name of a folder that is made in it.

    Memory follows the number of files of the books, not of videos. Raises DatasetError.
    """
    with scratch_of(folder, scratch, "counted") as path:
        return total(spill_sources(folder, (CLIPS, REJECTS, INDEX), path, run), run)


def portions(spills: Sequence[Path], size: int = PORTION) -> int:
    """Return into how many portions the identities of these spills are divided."""
    rows: int = sum(read_table(path.with_suffix(".arrow")).num_rows for path in spills)
    return max(1, -(-rows // size))


def count(spills: Sequence[Path], portion: int, of: int) -> Tally:
    """Count one portion: the identities whose first bytes fall into it."""
    parts = []
    for path in spills:
        table = read_table(path.with_suffix(".arrow"))
        if of > 1 and table.num_rows:
            ids = table["id"].combine_chunks()
            whole = np.frombuffer(ids.buffers()[1], np.uint8, 16 * len(ids), 16 * ids.offset).reshape(-1, 16)
            table = table.filter(pa.array(whole[:, :4].copy().view("<u4")[:, 0] % of == portion))
        parts.append(table)
    rows = pa.concat_tables([SCHEMA.empty_table(), *parts]).unify_dictionaries()
    ids = {what: rows.filter(pc.equal(rows["what"], what)) for what in range(6)}
    unique = {what: table["id"].unique() for what, table in ids.items()}
    counted = pc.value_counts(ids[SAMPLE_KEY]["id"])
    again = counted.field("values").filter(pc.greater(counted.field("counts"), 1))[:8]
    twice = []
    for found in again:
        held = ids[SAMPLE_KEY].filter(pc.equal(ids[SAMPLE_KEY]["id"], found))["name"].to_pylist()
        twice.append(f"{sorted(held)[-1]}: a sample is in {sorted(held)[0]} too")
    planned = pa.concat_arrays([unique[PLANNED_SOURCE], unique[REFUSED_SOURCE]]).unique()
    lost = _without(unique[LATER_SOURCE], planned)[:8].to_pylist()
    return Tally(
        samples=len(unique[SAMPLE_KEY]),
        refused_clips=len(_without(unique[REFUSED_KEY], unique[SAMPLE_KEY])),
        used=len(unique[USED_SOURCE]),
        known=len(planned),
        refused=len(_without(unique[REFUSED_SOURCE], unique[PLANNED_SOURCE])),
        twice=tuple(twice),
        lost=tuple(lost),
    )


def _without(values: pa.Array, others: pa.Array) -> pa.Array:
    return values.filter(pc.invert(pc.is_in(values, value_set=others)))


@contextlib.contextmanager
def scratch_of(folder: Path, name: str, done: str) -> Iterator[Path]:
    """Give a folder for what tasks spill: beside the shards, where all hosts see it; elsewhere if that cannot be written.

    name: of the folder; a command that is killed leaves it, and the next one finds it. done: what is done to the shards, for messages.
    Raises DatasetError while another process holds it.
    """
    path = folder / name
    with contextlib.ExitStack() as held:
        lock = FileLock(path / "lock", lambda holder: DatasetError(f"{folder}: is being {done} by {holder}; wait for it"))
        try:
            held.enter_context(lock)
        except OSError:
            path = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="scratch-")))
        yield path
        shutil.rmtree(path, ignore_errors=True)  # with the lock; a command that begins at this moment makes its own folder anew
