from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config import DecodeLimits, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.encoding.decode_clips import decoded
from pipeline.encoding.encoder import GroupEncoder
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, Clip, Reject, SourceVideo
from pipeline.shards.commit_record import read_info
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import read_sample
from tests.helpers.fakes import FakeCodec
from tests.pipeline.shards.test_manifest import planned

BUCKETS = (Bucket(frames=5, height=32, width=32), Bucket(frames=9, height=32, width=48))


@pytest.fixture
def folder(tmp_path: Path, clips: Path) -> Path:
    """A plan of two real videos in groups of three spans."""
    return planned(tmp_path / "shards", [clips / "bikes.mp4", clips / "carphone_pristine.mp4"], config(tmp_path))


def config(tmp_path: Path, **fields: object) -> PipelineConfig:
    return PipelineConfig(output=tmp_path / "shards", buckets=BUCKETS, clips_per_shard=3, batch=2, min_free_gb=0, **fields)  # type: ignore[arg-type]


def encode_all(folder: Path, settings: PipelineConfig) -> tuple[FakeCodec, dict[str, bytes]]:
    codec = FakeCodec()
    encoder = GroupEncoder(folder, settings, codec)
    groups = Manifest(folder).groups()
    for group in range(groups):
        encoder.encode(group, group + 1 if group + 1 < groups else None)
    encoder.close()
    return codec, {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/shard-*"))}


def test_shards_hold_every_planned_clip_and_are_made_again_alike(folder: Path, tmp_path: Path) -> None:
    codec, first = encode_all(folder, config(tmp_path))
    assert max(codec.batches) == 2
    rows = [row for path in sorted(folder.glob("*/*.parquet")) for row in pq.read_table(path).to_pylist()]
    manifest = Manifest(folder)
    wanted = {clip.key for group in range(manifest.groups()) for clip in manifest.clips(group)}
    assert {row["key"] for row in rows} == wanted and len(rows) == len(wanted) > 12
    for path in folder.glob("*/shard-*"):
        path.unlink()
    _, second = encode_all(folder, config(tmp_path))
    assert first == second


def test_several_decoders_make_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    _, one = encode_all(folder, config(tmp_path))
    for path in folder.glob("*/shard-*"):
        path.unlink()
    assert encode_all(folder, config(tmp_path, decoders=3))[1] == one


def test_groups_in_another_order_make_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """What an actor was told to prepare may go to another one: the feed then throws away what it decoded ahead."""
    _, wanted = encode_all(folder, config(tmp_path))
    for path in folder.glob("*/shard-*"):
        path.unlink()
    encoder = GroupEncoder(folder, config(tmp_path), FakeCodec())
    last = Manifest(folder).groups() - 1
    encoder.encode(last, 0)
    for group in range(1, last):
        encoder.encode(group, None)
    encoder.encode(0, None)
    encoder.close()
    assert {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/shard-*"))} == wanted


def test_a_video_that_vanished_is_refused_and_the_others_keep_their_batches(folder: Path, tmp_path: Path, clips: Path) -> None:
    _, whole = encode_all(folder, config(tmp_path))
    table = {p.stem: pq.read_table(p).to_pylist() for p in (folder / "f005x32x32").glob("*.parquet")}
    for path in folder.glob("*/shard-*"):
        path.unlink()
    broken = planned(
        tmp_path / "shards", [clips / "bikes.mp4", clips / "carphone_pristine.mp4"], config(tmp_path), move="bikes.mp4"
    )
    _, rest = encode_all(broken, config(tmp_path))
    for name, rows in table.items():
        info = read_info(broken / "f005x32x32" / f"{name}.parquet")
        again = {row["key"]: row for row in pq.read_table(broken / "f005x32x32" / f"{name}.parquet").to_pylist()}
        assert info.samples + len(info.rejects) == len(rows)
        assert {r["reason"] for r in info.rejects} <= {"not_found"}
        for row in rows:
            gone = row["source"].endswith("bikes.mp4")
            assert gone == (row["key"] not in again)
    assert set(rest) < set(whole) and any(name.endswith(".tar") for name in rest)


def test_features_are_stored_as_bfloat16(folder: Path, tmp_path: Path) -> None:
    encode_all(folder, config(tmp_path, features=True))
    shard = folder / "f009x32x48" / "shard-000000"
    sample = read_sample(f"{shard}.tar", pq.read_table(f"{shard}.parquet").to_pylist()[0])
    assert sample.features is not None and len(sample.features) == 3 * 8 * 4 * 6 * 2 and sample.meta["features"]


def clips_of(path: Path, count: int) -> list[Clip]:
    settings = PipelineConfig(buckets=BUCKETS)
    with DecoderProcess(settings.limits) as decoder:
        return list(plan_video(SourceVideo(str(path)), settings, decoder).clips)[:count]


class Killed(DecoderProcess):
    """A decoder whose child is killed just before it gives its second clip, the first `times` times."""

    def __init__(self, limits: DecodeLimits, times: int) -> None:
        super().__init__(limits)
        self.times = times

    def read(self, path, requests):  # type: ignore[no-untyped-def]
        for number, frames in enumerate(super().read(path, requests)):
            yield frames
            if number == 0 and self.times:
                self.times -= 1
                assert self.pid is not None
                os.kill(self.pid, signal.SIGKILL)
                self._child.wait()  # type: ignore[union-attr]
                self._buffer.clear()


@pytest.mark.parametrize(("deaths", "refused"), [(0, 0), (1, 0), (2, 1)])
def test_a_decoder_may_die_once_and_is_then_quarantined(clips: Path, deaths: int, refused: int) -> None:
    """One clip was given before the first death; it keeps its place, and the rest is refused after the second."""
    wanted = clips_of(clips / "bikes.mp4", 4)
    settings = PipelineConfig(buckets=(Bucket(frames=5, height=512, width=512),))
    with Killed(settings.limits, deaths) as decoder:
        found = list(decoded(wanted, decoder, settings))
    assert [clip for clip, _ in found] == wanted
    refusals = [item for _, item in found if isinstance(item, Reject)]
    assert bool(refusals) == bool(refused)
    for reject in refusals:
        assert reject.reason == "killed" and reject.stage == "encode" and "quarantined after 2 attempts" in reject.detail
