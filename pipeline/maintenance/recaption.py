"""Captions that were mended after their videos were planned: seen at each run, and put into the shards without encoding anew.

In:  the manifest, with the folder's lock held; the corpus as it is listed now.
Out: new captions by source (`changed`); the table of clips and shards that hold them (`recaption`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import read_json
from cluster.runtime.remote_files import is_url
from pipeline.corpus import fetch, tar_index
from pipeline.corpus.video_list import Sources, hashes, ordered
from pipeline.records import Clip, Reject, SourceVideo
from pipeline.shards.commit_record import read_info
from pipeline.shards.layout import CLIPS, DATASET, excluded, hidden, open_table, refuse_old, remove_index
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import read_sample
from pipeline.shards.writer import EncodedClip, write_shard
from pipeline.video import VideoError
from tokenizer.quantization.codec_spec import CodecSpec

MODEL = "captioner"
"""Carried column of a clip whose caption a model wrote."""

_CHUNK = 1 << 14
"""Videos or clips in memory at a time."""
_BEGUN = ".recaption"
"""File that is there while captions are put into the shards."""


def begun(manifest: Manifest) -> bool:
    """Whether an earlier run was killed while it put captions into the shards."""
    return (manifest.folder / _BEGUN).exists()


def changed(manifest: Manifest, videos: Iterable[SourceVideo], *, remote: bool) -> dict[str, str]:
    """Return the captions, by source, that differ from those of the plan.

    remote: read the caption files beside remote videos too; else only those of videos whose caption in the tables differs.
    """
    planned, gone = _Planned(manifest), excluded(manifest.folder)
    found: dict[str, str] = {}
    held = iter(videos)
    while chunk := list(islice(held, _CHUNK)):
        for video, place in zip(chunk, planned.sources.find(hashes(video.source for video in chunk)).tolist(), strict=True):
            if place < 0 or hidden(video.source, gone):
                continue
            listed = video.caption and not planned.says(place, video.caption)
            if not (remote or listed or _near(video.source)):
                continue
            try:
                now = fetch.sidecar(video.source) or video.caption
            except VideoError as error:
                print(f"captions: {error}; the old caption stays", flush=True)
                continue
            if not planned.says(place, now) and (now or not planned.by_model[place]):
                found[video.source] = now
    return found


class _Planned:
    """The sources with planned clips and what is known of the caption of each, as hashes: 33 bytes per source."""

    def __init__(self, manifest: Manifest) -> None:
        pairs, texts = [np.empty((0, 2), np.uint64)], [np.empty((0, 2), np.uint64)]
        models = [np.empty(0, bool)]
        table = open_table(manifest.folder, CLIPS)
        last = ""
        for batch in () if table is None else table.batches(["source", "caption", "extra"], _CHUNK):
            first: dict[str, int] = {}
            for at, source in enumerate(batch["source"].to_pylist()):
                first.setdefault(source, at)
            first.pop(last, None)  # goes on from the batch before
            last = batch["source"][-1].as_py() if len(batch) else last
            mine = batch.take(pa.array(list(first.values()), pa.int64()))
            pairs.append(hashes(first))
            texts.append(hashes(mine["caption"].to_pylist()))
            models.append(np.array([MODEL in dict(extra) for extra in mine["extra"].to_pylist()], bool))
        whole = np.concatenate(pairs)
        order = ordered(whole)
        self.sources = Sources()
        self.sources.pairs = whole[order]
        self._texts = np.concatenate(texts)[order]
        self.by_model = np.concatenate(models)[order]
        """Whether a model wrote the caption of each source."""

    def says(self, place: int, caption: str) -> bool:
        """Return whether the caption of a source is this one."""
        return bool((self._texts[place] == hashes([caption])[0]).all())


def _near(source: str) -> bool:
    inside = tar_index.split(source)
    return not is_url(inside[1] if inside else source)


def recaption(manifest: Manifest, captions: Mapping[str, str]) -> int:
    """Put captions, by source, into the table of clips and into the shards that hold those sources. Returns the number of shards rewritten.

    If it is killed midway, the next run goes on (`begun`): every shard that differs from the table of clips is rewritten.
    """

    def with_caption(clip: Clip) -> Clip:
        if clip.source not in captions:
            return clip
        extra = {name: value for name, value in clip.extra.items() if name != MODEL}
        return replace(clip, caption=captions[clip.source], extra=extra)

    refuse_old(manifest.folder)
    remove_index(manifest.folder)
    (manifest.folder / _BEGUN).touch()
    if captions:
        manifest.rewrite_clips(with_caption)
    dataset = read_json(manifest.folder / DATASET)
    spec, level = CodecSpec.parse(dataset["spec"]), int(dataset.get("pipeline", {}).get("zstd_level", 3))
    count = sum(
        _rewritten(manifest, name, {clip.key: clip for clip in manifest.clips(group)}, spec, level)
        for group, names, _ in manifest.shards()
        for name in names
        if manifest.committed([name])
    )
    (manifest.folder / _BEGUN).unlink()
    return count


def _rewritten(manifest: Manifest, name: str, clips: Mapping[str, Clip], spec: CodecSpec, level: int) -> bool:
    """Rewrite a shard if its captions are not those of the plan."""
    record, tar = (manifest.folder / f"{name}.{ending}" for ending in ("parquet", "tar"))
    held = pq.read_table(record, columns=["key", "caption"])
    if all(clips[key].caption == text for key, text in zip(held["key"].to_pylist(), held["caption"].to_pylist())):
        return False
    kept = []
    for row in pq.read_table(record).to_pylist():
        sample = read_sample(tar, row, shard=name)
        kept.append(EncodedClip(clips[row["key"]], sample.bits, sample.features))
    rejects = [Reject(**plain) for plain in read_info(record).rejects]
    # The record goes first, as in takedown.compact: a tar without a record is computed anew.
    record.unlink()
    tar.unlink()
    write_shard(manifest.folder, name, kept, rejects, spec, zstd_level=level)
    return True
