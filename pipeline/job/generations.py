"""Which videos a run plans: those without an outcome, those that are tried again, and a list that was begun and has changed since.

In:  the corpus as it is now, the manifest.
Out: the generation to plan, None where there is nothing to plan; what the user should know, printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.config import Config
from cluster.runtime.atomic_files import read_json, write_json
from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.corpus import fetch
from pipeline.corpus.listing import survey
from pipeline.maintenance import recaption as captioning
from pipeline.records import Clip, SourceVideo
from pipeline.shards.layout import INDEX
from pipeline.shards.manifest import Generation, Manifest
from pipeline.video import VideoError


def begin(config: Config, manifest: Manifest, *, retry: bool, recaption: bool = False) -> Generation | None:
    """List the corpus, and begin a generation with the videos that have no outcome yet; with `retry` also quarantined ones.

    recaption: put captions that have changed into the plan and the shards; without it, they are counted.
    A generation that an earlier run began goes on, with the list as it is now. Returns None where there is nothing to plan and no
    clip to encode again. Raises CorpusError, CaptionError.
    """
    begun = manifest.generation()
    listing = survey(config.get(CorpusConfig))
    for note in listing.notes:
        print(note, flush=True)
    _compare_captions(manifest, listing.videos, recaption)
    known = manifest.known()
    if begun is not None:
        return _resumed(begun, listing.videos, known, manifest, config.get(PipelineConfig).videos_per_task)
    again, clips = manifest.quarantined() if retry else (set(), [])
    changed, clips = _without_changed(manifest, clips)
    again |= changed
    new = [video for video in listing.videos if video.source not in known or video.source in again]
    print(f"corpus: {len(new)} videos to plan" + (f", {len(clips)} clips to encode again" if retry else ""), flush=True)
    if not new and not clips:
        return None
    (manifest.folder / INDEX).unlink(missing_ok=True)
    return manifest.begin_generation(new, clips)


def _resumed(begun: Generation, listed: Sequence[SourceVideo], known: set[str], manifest: Manifest, size: int) -> Generation:
    """Return the generation that was begun, with the list as it is now; what is planned of unchanged videos is kept."""
    own = {video.source for video in begun.videos}
    now = tuple(video for video in listed if video.source not in known or video.source in own)
    begin_anew = f"to begin this plan anew, remove {manifest.parts}"
    parts = [begun.videos[at : at + size] for at in range(0, len(begun.videos), size)]
    planned: dict[str, Any] = {}
    same = now == begun.videos
    for path in sorted(manifest.parts.glob("part-*.json")):
        plans = read_json(path)
        planned.update((plan["source"], plan) for plan in plans)
        number = int(path.stem.removeprefix("part-"))
        # Parts of another size were planned with another pipeline.videos_per_task.
        same &= number < len(parts) and [plan["source"] for plan in plans] == [video.source for video in parts[number]]
    if same:
        print(f"plan: a list of {len(now)} videos that an earlier run began goes on; {begin_anew}", flush=True)
        return begun
    old = {video.source: video for video in begun.videos}
    # A kill from here on loses planned parts at most: they are named for another list than sources.json has, so they go first.
    for path in manifest.parts.glob("part-*"):
        path.unlink()
    made = replace(begun, videos=now)
    manifest.write_generation(made)
    kept = 0
    for number, at in enumerate(range(0, len(now), size)):
        part = now[at : at + size]
        if all(old.get(video.source) == video and video.source in planned for video in part):
            write_json(manifest.part(number), [planned[video.source] for video in part])
            kept += len(part)
    print(
        f"plan: the list that an earlier run began has changed ({len(begun.videos)} videos then, {len(now)} now); it is read anew, "
        f"and what was planned of {kept} unchanged videos is kept; {begin_anew}",
        flush=True,
    )
    return made


def _compare_captions(manifest: Manifest, videos: Sequence[SourceVideo], apply: bool) -> None:
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
    refused = {reject.key for reject in manifest.rejects() if reject.reason == "changed"}
    suspects = {clip.source: clip.source_digest for clip in clips if clip.key in refused}
    newest = _newest_digests(manifest) if suspects else {}
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


def _newest_digests(manifest: Manifest) -> dict[str, str]:
    found: dict[str, str] = {}
    for group in range(manifest.groups()):
        table = manifest.group_table(group, ["source", "source_digest"])
        found.update(zip(table["source"].to_pylist(), table["source_digest"].to_pylist()))
    return found
