"""Folders of format 1: read as they are, upgraded by one command, with equal content and digest."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.runtime.atomic_files import write_json
from cluster.tables import table_list, table_writer
from cluster.tables.table_folder import TableFolder
from pipeline.books import upgrade
from pipeline.books.merge import merge
from pipeline.books.upgrade import upgrade_folder
from pipeline.config import PipelineConfig
from pipeline.maintenance import recaption, takedown
from pipeline.maintenance.verify import digest, verify
from pipeline.records import SourceVideo
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import CLIPS, FINGERPRINTS, INDEX, REJECTS, DatasetError
from pipeline.shards.manifest import Manifest
from tests.helpers.plans import BUCKET, finished, plan

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "before_rooms" / "shards"
DIGEST = "9014f25956c390e2ddc55bf6e1219f6062263fea947927fa379700a61c692f96"


def aged(folder: Path) -> Path:
    """Turn the books of a folder into format 1, as earlier versions wrote them."""
    for name in (CLIPS, REJECTS, INDEX):
        table = TableFolder.open(folder / name)
        meta = {b"videoar": json.dumps({"digest": table.meta["digest"]}).encode()} if name == INDEX else {}
        groups = [table.group(number).replace_schema_metadata(meta) for number in range(table.row_groups)]
        schema = (groups[0] if groups else pa.table({})).schema
        with pq.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
            for group in groups:
                writer.write_table(group)
        shutil.rmtree(folder / name)
    return folder


def test_a_folder_of_an_earlier_version_keeps_its_digest(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(SAMPLE, folder)
    before = ShardDataset.open(folder)
    rows = [before.rows(bucket).to_pylist() for bucket in before.buckets()]
    assert sorted(upgrade_folder(folder)) == ["clips", "index", "rejects"] and upgrade_folder(folder) == []
    after = ShardDataset.open(folder)
    assert after.digest == before.digest == digest(folder) == DIGEST
    assert [after.rows(bucket).to_pylist() for bucket in after.buckets()] == rows
    assert verify(folder).sound and not list(folder.glob("*.parquet"))


def test_what_writes_to_an_old_folder_names_the_command(tmp_path: Path) -> None:
    folder = aged(finished(tmp_path))
    assert verify(folder).sound
    takedown.exclude(folder, ["v/a"])
    for work in (lambda: takedown.compact(folder), lambda: recaption.recaption(Manifest(folder), {"v/a": "new"})):
        with pytest.raises(
            DatasetError, match=r"books are of format 1, which is only read; run `videoar shards upgrade .*` first"
        ):
            work()
        assert table_list.exists(folder / INDEX), "nothing is lost"
    upgrade_folder(folder)
    assert takedown.compact(folder) == 4 and verify(folder).sound


def test_a_run_under_way_goes_on_after_the_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list is one JSON file, its parts too, and a killed merge had written its groups of clips already."""
    new, straight = [plan("v/c", [20, 21]), plan("v/a2", [0], digest=plan("v/a", []).digest)], finished(tmp_path / "straight")
    folder = finished(tmp_path / "old")
    groups = Manifest(folder).groups()

    def pending(at: Path) -> None:
        manifest = Manifest(at)
        generation = manifest.begin_generation([SourceVideo(each.source) for each in new])
        write_json(manifest.part(0).with_suffix(".json"), [each.plain() for each in new])
        merge(manifest, generation, PipelineConfig(clips_per_shard=3, min_free_gb=0), 1)

    pending(straight)
    pending(folder)
    aged(folder)
    plain = {"first_group": groups, "videos": [asdict(SourceVideo(each.source)) for each in new], "clips": []}
    write_json(folder / ".plan" / "sources.json", plain)
    write_json(folder / ".plan" / "part-000000.json", [each.plain() for each in new])
    write_list = table_writer.write_list

    def killed(at: Path, *rest: object) -> None:
        write_list(at, *rest)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(upgrade.table_writer, "write_list", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                upgrade_folder(folder)
    assert "sources.json" in upgrade_folder(folder)
    manifest = Manifest(folder)
    generation = manifest.generation()
    assert generation is not None and generation.first_group == groups == manifest.groups()
    merge(manifest, generation, PipelineConfig(clips_per_shard=3, min_free_gb=0), 1)
    wanted = Manifest(straight)
    assert [manifest.clips(g) for g in range(manifest.groups())] == [wanted.clips(g) for g in range(wanted.groups())]
    assert not table_list.exists(folder / FINGERPRINTS) and BUCKET.name in manifest.clips(0)[0].shard
