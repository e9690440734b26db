"""Which videos a corpus holds.

In:  the `corpus` section: files, folders, globs, fsspec URLs; lists of videos (parquet, csv, jsonl); WebDataset tars.
Out: `SourceVideo` records in a fixed order, streamed (`Survey`) or in memory (`survey`), and what was left out; fetch.py turns each
     video into a local file.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.runtime.remote_files import is_url, retried
from pipeline.config import CorpusConfig
from pipeline.corpus import tar_index
from pipeline.corpus.caption_table import CaptionTable, table_rows
from pipeline.corpus.folders import CorpusError, Found, Names, local_names, remote_names
from pipeline.corpus.spilled_names import SpilledNames
from pipeline.corpus.text import readable, storable
from pipeline.records import SourceVideo

LISTS = (".csv", ".jsonl", ".parquet")
"""Extensions of entries that are lists of videos."""
_EMPTY = CaptionTable({}, ())


@dataclass(frozen=True)
class Listing:
    """The videos of a corpus, and what a user should know about how they were found."""

    videos: tuple[SourceVideo, ...]
    notes: tuple[str, ...]
    """Lines for the start of a job: videos by extension, files that were left out, captions."""


def find(config: CorpusConfig) -> list[SourceVideo]:
    """List the usable videos of a corpus, as `survey` does."""
    return [video for video in survey(config).videos if not video.fault]


def survey(config: CorpusConfig) -> Listing:
    """List the corpus in memory: entries in the order of the configuration, each folder sorted, repeated names dropped.

    Raises as `Survey` does.
    """
    found, videos = Survey(config), dict[str, SourceVideo]()
    for video in found:
        if (first := videos.setdefault(video.source, video)) is not video:
            found.drop(video, first)
    return Listing(tuple(videos.values()), found.notes())


class Survey:
    """A corpus, listed as it is iterated over: its entries in the order of the configuration, each folder sorted.

    Captions come from the table; a sidecar file (NAME.txt, NAME.json) is read only when the video is planned. Names may come more
    than once: whoever drops a repeated one says so (`drop`), so that the counts are right. Raises CorpusError for a corpus without
    entries, for an entry that is missing, unreadable or holds no video, and for a table of captions of which no row belongs to a
    video; CaptionError for a table or list that cannot be read.

    kept: a folder where what is found in object stores waits until `ended`: a listing that is interrupted goes on with it.
    """

    def __init__(self, config: CorpusConfig, kept: Path | None = None) -> None:
        if not config.videos:
            raise CorpusError("corpus.videos is empty; name files, folders, globs or URLs")
        self._config = config
        remote = kept is not None and any(map(is_url, config.videos))
        self._kept = SpilledNames.of(kept, config) if kept is not None and remote else None
        self._table = CaptionTable.read(config.captions, config.columns) if config.captions else _EMPTY
        self._endings: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._repeated, self._mended = self._table.repeated, self._table.mended
        self._faults = self._captioned = 0
        self._matched: set[str] = set()
        self._first = ""

    def __iter__(self) -> Iterator[SourceVideo]:
        for entry in self._config.videos:
            found = Names(self._config.extensions)
            count = 0
            for name in _expanded(entry, found, self._kept):
                for video in self._videos(name, found):
                    count += 1
                    self._count(video, 1)
                    yield video
            if not count:
                self.ended()  # what is missing is added before the next run
                raise CorpusError(_nothing(entry, found, self._config.extensions))
            self._left_out.update(found.left_out)
        rows = self._table.rows
        if rows and not self._matched:
            self.ended()
            raise CorpusError(
                f"corpus.captions: {self._config.captions}: none of its {len(rows)} rows belongs to a video (its first `file` is "
                f"{next(iter(rows))}, the first video is {self._first}); `file` is the end of a video's name, with or without extension"
            )

    def _videos(self, name: str, found: Names) -> Iterator[SourceVideo]:
        if name.lower().endswith(LISTS):
            for row, mended in table_rows(name, self._config.columns):
                self._mended += mended
                yield _listed_video(name, row, self._config.columns, self._table)
        else:
            for inner in _members(name, found) if _is_tar(name) else [name]:
                yield _video(inner, self._table)

    def _count(self, video: SourceVideo, number: int) -> None:
        self._first = self._first or video.source
        self._endings[_ending(video.source)] += number
        self._faults += number * bool(video.fault)
        self._captioned += number * bool(video.caption)
        if self._table.rows and (match := self._table.match(video.source)):
            self._matched.add(match)

    def drop(self, video: SourceVideo, first: SourceVideo) -> None:
        """Count a video no longer, as its name came before, as that of `first`."""
        self._count(video, -1)
        self._repeated += video != first

    def ended(self) -> None:
        """Remove what is kept of the listing: the next one begins anew."""
        if self._kept is not None:
            self._kept.remove()

    def notes(self) -> tuple[str, ...]:
        """Return what a user should know, once the corpus is listed."""
        return tuple(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"corpus: {self._endings.total()} videos ({_counts(self._endings)})"
        if self._left_out:
            yield f"corpus: left out by their ending: {_counts(self._left_out)} (corpus.extensions)"
        if self._faults:
            yield f"corpus: {self._faults} videos have a name that is not UTF-8; each is refused as bad_name"
        if self._config.captions or self._captioned or self._repeated or self._mended:
            line = f"captions: {self._captioned} of {self._endings.total()} videos have one in the tables"
            line += f"; {len(self._table.rows) - len(self._matched)} rows match no video" if self._config.captions else ""
            line += f"; {self._repeated} rows repeat a file with other content (the first counts)" if self._repeated else ""
            line += f"; {self._mended} rows held half characters (now U+FFFD)" if self._mended else ""
            yield line


def _expanded(entry: str, found: Names, kept: SpilledNames | None) -> Found:
    """Return the files that an entry names; lists and tars stand for themselves."""
    if entry.lower().endswith(LISTS) and not Names.is_glob(entry):
        return iter([entry])
    return remote_names(entry, found, kept) if is_url(entry) else local_names(entry, found)


def _video(name: str, table: CaptionTable) -> SourceVideo:
    if not storable(name):
        return SourceVideo(readable(name), fault="its name is not UTF-8; rename it")
    return SourceVideo(name, *table.look_up(name))


def _listed_video(path: str, row: Mapping[str, str], columns: Sequence[str], table: CaptionTable) -> SourceVideo:
    """Return the video of a list's row; `file` is relative to the list's folder. A caption of the list precedes the table's."""
    file = row["file"]
    if is_url(file) or Path(file).is_absolute():
        name = file
    else:
        name = f"{path.rpartition('/')[0]}/{file}" if is_url(path) else str(Path(path).parent / file)
    caption = row.get("caption", "").strip() or (table.look_up(name)[0] if table.rows else "")
    return SourceVideo(name, caption, {column: row[column] for column in columns if column in row})


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar") and not ("::" in name and is_url(name))


def _members(tar: str, found: Names) -> list[str]:
    """Return the videos inside a tar, as fsspec names them: tar://MEMBER::TAR."""
    try:
        names = sorted(retried(lambda: tar_index.members(tar)))
    except (OSError, tarfile.TarError) as error:
        raise CorpusError(f"corpus.videos: cannot read {tar}: {error}") from error
    return [f"tar://{name}::{tar}" for name in found.counted(names)]


def _nothing(entry: str, found: Names, extensions: tuple[str, ...]) -> str:
    message = f"corpus.videos: {entry} holds no video (extensions that count: {' '.join(extensions)})"
    if found.left_out:
        message += f"; it holds {_counts(found.left_out)}"
    for ending in (".tar", *LISTS):
        if found.left_out.get(ending):
            message += f"; name those files: {entry.rstrip('/')}/**/*{ending}"
            break
    else:
        if found.left_out:
            message += "; add to corpus.extensions what counts"
        elif Names.is_glob(entry) and "." not in entry.rstrip("/").rsplit("/", 1)[-1]:
            message += f"; a pattern names files, not folders: for all below folders write {entry.rstrip('/')}/**"
    return message


def _ending(name: str) -> str:
    inside = tar_index.split(name)
    return PurePosixPath(inside[0] if inside else name.split("::")[0]).suffix.lower() or "no ending"


def _counts(endings: Counter[str]) -> str:
    return ", ".join(
        f"{count} {ending}" for ending, count in sorted(endings.items(), key=lambda item: (-item[1], item[0]))[:12]
    )
