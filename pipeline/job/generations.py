"""Which videos a run plans: those without an outcome, those that are tried again, and a list that was begun and has changed since.

In:  the corpus as it is now, the manifest.
Out: the generation to plan, None where there is nothing to plan; what the user should know, printed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.config import Config
from pipeline.books.merge import SCRATCH
from pipeline.books.parts import read_part, write_table
from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.corpus import fetch
from pipeline.corpus.listing import Survey
from pipeline.corpus.video_list import Sources, VideoList
from pipeline.maintenance import recaption as captioning
from pipeline.records import Clip, SourceVideo
from pipeline.shards.generation import Generation
from pipeline.shards.layout import CLIPS, KEPT_LISTING, LISTING, open_table, remove_index
from pipeline.shards.manifest import Manifest
from pipeline.video import VideoError


def begin(config: Config, manifest: Manifest, *, retry: bool, recaption: bool = False) -> Generation | None:
    """List the corpus, and begin a generation with the videos that have no outcome yet; with `retry` also quarantined ones.

    recaption: put captions that have changed into the plan and the shards; without it, they are counted.
    A generation that an earlier run began goes on, with the list as it is now. Returns None where there is nothing to plan and no
    clip to encode again. Raises CorpusError, CaptionError.
    """
    begun, found = manifest.generation(), Survey(config.get(CorpusConfig), manifest.parts / KEPT_LISTING)
    planned = _planned(found, begun, config, manifest, retry, recaption)
    # Only now: a kill before the list is written goes on with what was listed; whatever is planned later is listed anew.
    found.ended()
    return planned


def _planned(
    found: Survey, begun: Generation | None, config: Config, manifest: Manifest, retry: bool, recaption: bool
) -> Generation | None:
    with VideoList(found, manifest.folder / LISTING) as videos:
        for video, first in videos.repeats():
            found.drop(video, first)
        for note in found.notes():
            print(note, flush=True)
        _compare_captions(manifest, videos, recaption)
        planned, refused = (
            Sources(chain.from_iterable(names)) for names in (manifest.planned_names(), manifest.refused_names())
        )
        has_clips = planned.hold(videos.pairs)
        known = has_clips | refused.hold(videos.pairs)
        if begun is not None:
            return _resumed(begun, videos, ~known, manifest, config.get(PipelineConfig).videos_per_task)
        again, clips = manifest.quarantined() if retry else (set(), [])
        changed, clips = _without_changed(manifest, clips)
        wanted = ~known | Sources(again | changed).hold(videos.pairs)
        count = videos.count(wanted)
        print(f"corpus: {count} videos to plan" + (f", {len(clips)} clips to encode again" if retry else ""), flush=True)
        if not count and not clips:
            return None
        remove_index(manifest.folder)
        before = np.where(has_clips, 2, known.astype(np.uint8))
        return manifest.begin_generation(((video, int(before[at])) for video, at in videos.hashed(wanted)), clips)


def _resumed(begun: Generation, listed: VideoList, new: npt.NDArray[np.bool_], manifest: Manifest, size: int) -> Generation:
    """Return the generation that was begun, with the list as it is now; what is planned of unchanged videos is kept. new: which have no outcome."""
    own = Sources(video.source for video, _ in begun.listed())
    wanted = new | own.hold(listed.pairs)
    begin_anew = f"to begin this plan anew, remove {manifest.parts}"
    paths = sorted({path.with_suffix(".arrow") for path in manifest.parts.glob("part-*") if path.suffix in (".arrow", ".json")})
    if _unchanged(begun, (video for video, _ in listed.hashed(wanted)), paths, size):
        print(f"plan: a list of {begun.count} videos that an earlier run began goes on; {begin_anew}", flush=True)
        return begun
    # What was planned is laid out anew in memory.
    old = {video.source: (video, before) for video, before in begun.listed()}
    now = [video for video, _ in listed.hashed(wanted)]
    planned: dict[str, pa.Table] = {}
    for path in paths:
        table = read_part(path)
        planned.update((name, table.slice(at, 1)) for at, name in enumerate(table["source"].to_pylist()))
    # A kill from here on loses planned parts at most: they are named for another list than is written next, so they go first.
    for path in manifest.parts.glob("part-*"):
        path.unlink()
    for path in manifest.parts.glob(f"{SCRATCH}*"):
        shutil.rmtree(path)
    made = Generation.write(
        manifest.folder,
        begun.number,
        begun.first_group,
        ((video, old[video.source][1] if video.source in old else 0) for video in now),
        begun.clips,
    )
    kept = 0
    for number, at in enumerate(range(0, len(now), size)):
        part = now[at : at + size]
        if all(video.source in planned and old[video.source][0] == video for video in part):
            write_table(manifest.part(number), pa.concat_tables([planned[video.source] for video in part]), compression="zstd")
            kept += len(part)
    print(
        f"plan: the list that an earlier run began has changed ({begun.count} videos then, {len(now)} now); it is read anew, "
        f"and what was planned of {kept} unchanged videos is kept; {begin_anew}",
        flush=True,
    )
    return made


def _unchanged(begun: Generation, now: Iterator[SourceVideo], paths: Sequence[Path], size: int) -> bool:
    """Return whether the list is as it was begun, and its parts of the size that they have now."""
    if not all(one == two for one, two in zip_longest((video for video, _ in begun.listed()), now)):
        return False
    for path in paths:
        names = [video.source for video in begun.part(int(path.stem.removeprefix("part-")), size)]
        # Parts of another size were planned with another pipeline.videos_per_task.
        if read_part(path)["source"].to_pylist() != names:
            return False
    return True


def _compare_captions(manifest: Manifest, videos: Iterable[SourceVideo], apply: bool) -> None:
    captions = captioning.changed(manifest, videos, remote=apply)
    if apply or captioning.begun(manifest):
        shards = captioning.recaption(manifest, captions if apply else {})
        print(
            f"captions: {len(captions) if apply else 0} videos have a new one; {shards} shards are rewritten with it",
            flush=True,
        )
    elif captions:
        print(
            f"captions: {len(captions)} videos have another caption now than the plan and the shards (first: {min(captions)}); run "
            "with --recaption to put them in, without encoding anew",
            flush=True,
        )


def _without_changed(manifest: Manifest, clips: Sequence[Clip]) -> tuple[set[str], list[Clip]]:
    """Split clips that are tried again: sources whose file is another now are planned anew, the other clips encoded as planned."""
    refused: set[str] = set()
    for table in manifest.reject_tables(["reason", "key"]):
        refused.update(table.filter(pc.equal(table["reason"], "changed"))["key"].to_pylist())
    suspects = {clip.source: clip.source_digest for clip in clips if clip.key in refused}
    newest = _newest_digests(manifest, suspects) if suspects else {}
    changed, stale = set(), set()
    for source, digest in suspects.items():
        if newest.get(source) != digest:
            stale.add(source)  # planned anew before
            continue
        try:
            with fetch.local(source) as path:
                same = fetch.content_digest(path) == digest
        except VideoError:
            same = False  # planning it says what is wrong
        if not same:
            changed.add(source)
    return changed, [clip for clip in clips if not (clip.key in refused and clip.source in changed | stale)]


def _newest_digests(manifest: Manifest, sources: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    wanted, clips = pa.array(sorted(sources), pa.string()), open_table(manifest.folder, CLIPS)
    for table in () if clips is None else clips.tables(["source", "source_digest"]):
        mine = table.filter(pc.is_in(table["source"], value_set=wanted))
        found.update(zip(mine["source"].to_pylist(), mine["source_digest"].to_pylist(), strict=True))
    return found
