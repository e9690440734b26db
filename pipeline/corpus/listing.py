"""Which videos a corpus holds.

In:  the `corpus` section: files, folders, globs, fsspec URLs; lists of videos (parquet, csv, jsonl); WebDataset tars.
Out: a `Listing`: `SourceVideo` records in a fixed order, and what was left out; fetch.py turns each video into a local file.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.runtime.remote_files import is_url, retried
from pipeline.config import CorpusConfig
from pipeline.corpus import tar_index
from pipeline.corpus.caption_table import CaptionTable
from pipeline.corpus.folders import CorpusError, Found, Names, local_names, remote_names
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
    """List the corpus: entries in the order of the configuration, each folder sorted, repeated names dropped.

    Captions come from the table; a sidecar file (NAME.txt, NAME.json) is read only when the video is planned.
    Raises CorpusError for a corpus without entries, for an entry that is missing, unreadable or holds no video, and for a table of
    captions of which no row belongs to a video; CaptionError for a table or list that cannot be read.
    """
    if not config.videos:
        raise CorpusError("corpus.videos is empty; name files, folders, globs or URLs")
    table = CaptionTable.read(config.captions, config.columns) if config.captions else _EMPTY
    videos: dict[str, SourceVideo] = {}
    left_out: Counter[str] = Counter()
    matched: set[str] = set()
    repeated, mended = table.repeated, table.mended
    for entry in config.videos:
        found = Names(config.extensions)
        count = 0
        for name in _expanded(entry, found):
            if name.lower().endswith(LISTS):
                listed = CaptionTable.read(name, config.columns)
                repeated, mended = repeated + listed.repeated, mended + listed.mended
                made = [_listed_video(name, row, listed, table) for row in listed.rows]
            else:
                made = [_video(inner, table) for inner in (_members(name, found) if _is_tar(name) else [name])]
            count += len(made)
            for video in made:
                videos.setdefault(video.source, video)
        if not count:
            raise CorpusError(_nothing(entry, found, config.extensions))
        left_out.update(found.left_out)
    if config.captions:
        matched = {match for video in videos.values() if (match := table.match(video.source))}
        if table.rows and not matched:
            row = next(iter(table.rows))
            raise CorpusError(
                f"corpus.captions: {config.captions}: none of its {len(table.rows)} rows belongs to a video (its first `file` is "
                f"{row}, the first video is {next(iter(videos))}); `file` is the end of a video's name, with or without extension"
            )
    unmatched = len(table.rows) - len(matched)
    return Listing(tuple(videos.values()), tuple(_notes(videos, left_out, bool(config.captions), unmatched, repeated, mended)))


def _expanded(entry: str, found: Names) -> Found:
    """Return the files that an entry names; lists and tars stand for themselves."""
    if entry.lower().endswith(LISTS) and not Names.is_glob(entry):
        return [entry]
    return remote_names(entry, found) if is_url(entry) else local_names(entry, found)


def _video(name: str, table: CaptionTable) -> SourceVideo:
    if not storable(name):
        return SourceVideo(readable(name), fault="its name is not UTF-8; rename it")
    return SourceVideo(name, *table.look_up(name))


def _listed_video(path: str, file: str, listed: CaptionTable, table: CaptionTable) -> SourceVideo:
    """Return the video of a list's row; `file` is relative to the list's folder. A caption of the list precedes the table's."""
    if is_url(file) or Path(file).is_absolute():
        name = file
    else:
        name = f"{path.rpartition('/')[0]}/{file}" if is_url(path) else str(Path(path).parent / file)
    caption, extra = listed.look_up(file)
    return SourceVideo(name, caption or table.look_up(name)[0], extra)


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar") and "::" not in name


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
    return message


def _notes(
    videos: dict[str, SourceVideo], left_out: Counter[str], has_table: bool, unmatched: int, repeated: int, mended: int
) -> Iterator[str]:
    endings = Counter(_ending(name) for name in videos)
    yield f"corpus: {len(videos)} videos ({_counts(endings)})"
    if left_out:
        yield f"corpus: left out by their ending: {_counts(left_out)} (corpus.extensions)"
    if faults := sum(bool(video.fault) for video in videos.values()):
        yield f"corpus: {faults} videos have a name that is not UTF-8; each is refused as bad_name"
    captioned = sum(bool(video.caption) for video in videos.values())
    if has_table or captioned or repeated or mended:
        line = f"captions: {captioned} of {len(videos)} videos have one in the tables"
        line += f"; {unmatched} rows match no video" if has_table else ""
        line += f"; {repeated} rows repeat a file with other content (the first counts)" if repeated else ""
        line += f"; {mended} rows held half characters (now U+FFFD)" if mended else ""
        yield line


def _ending(name: str) -> str:
    inside = tar_index.split(name)
    return PurePosixPath(inside[0] if inside else name.split("::")[0]).suffix.lower() or "no ending"


def _counts(endings: Counter[str]) -> str:
    return ", ".join(
        f"{count} {ending}" for ending, count in sorted(endings.items(), key=lambda item: (-item[1], item[0]))[:12]
    )
