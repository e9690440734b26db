"""dataset.json: a folder that was begun with other settings is refused, and nothing is written to a foreign folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.config import ClusterConfig, load
from cluster.config.precision import Hardware
from cluster.runtime.atomic_files import DamagedFile
from pipeline.config import PipelineConfig
from pipeline.job import dataset_json
from pipeline.job.dataset_json import ConfigChanged
from pipeline.shards.layout import FolderError


def test_a_changed_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    old = {"fps": 8.0, "pipeline": {"batch": 4, "cuts": {"threshold": 27.0}}, "buckets": ["f005x32x32"]}
    dataset_json.begin(tmp_path, old)
    before = (tmp_path / "dataset.json").read_bytes()
    dataset_json.begin(tmp_path, old)
    new = {"fps": 12.0, "pipeline": {"batch": 4, "cuts": {"threshold": 30.0}, "dedup": True}, "buckets": ["f005x32x32"]}
    with pytest.raises(ConfigChanged) as caught:
        dataset_json.begin(tmp_path, new)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == ["  fps: 8.0 -> 12.0", "  pipeline.cuts.threshold: 27.0 -> 30.0", "  pipeline.dedup: null -> true"]
    assert (tmp_path / "dataset.json").read_bytes() == before


def test_a_key_of_another_version_is_no_change_while_it_holds_its_default(tmp_path: Path) -> None:
    """The folder was begun before `pipeline.crop` and `pipeline.cuts.margin` existed, and when there was a `pipeline.gone`."""
    kept = {"batch": 4, "cuts": {"threshold": 27.0}}
    dataset_json.begin(
        tmp_path, {"fps": 8.0, "pipeline": {**kept, "gone": {"far": 3, "near": 1}}, "not_default": ["pipeline.gone.near"]}
    )
    before = (tmp_path / "dataset.json").read_bytes()
    defaults = {"pipeline": {"batch": 4, "cuts": {"threshold": 27.0, "margin": 0.0}, "crop": {"deep": False}}}

    def newer(margin: float, deep: bool, **fields: object) -> list[str]:
        pipeline = {"batch": 4, "cuts": {"threshold": 27.0, "margin": margin}, "crop": {"deep": deep}, "gone": {"near": 1}}
        try:
            dataset_json.begin(tmp_path, {"fps": 8.0, "pipeline": {**pipeline, **fields}, "not_default": ["x"]}, defaults)
        except ConfigChanged as error:
            return str(error).splitlines()[1:-1]
        return []

    assert newer(0.0, False) == [], "new keys at their defaults, and a removed one that held its default"
    assert newer(0.5, True) == ["  pipeline.crop.deep: false -> true", "  pipeline.cuts.margin: 0.0 -> 0.5"]
    assert newer(0.0, False, gone={}) == ["  pipeline.gone: null -> {}", "  pipeline.gone.near: 1 -> null"], "it was set"
    assert newer(0.0, False, batch=5) == ["  pipeline.batch: 4 -> 5"]
    assert (tmp_path / "dataset.json").read_bytes() == before


def test_a_foreign_folder_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FolderError, match=r"holds holiday\.jpg but no dataset\.json"):
        dataset_json.begin(tmp_path, {})


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"dataset\.json: not valid JSON"):
        dataset_json.begin(tmp_path, {})


def settled(folder: Path, *words: str) -> tuple[str, bool]:
    """Return the type of the codec under a configuration, and whether a slow one is accepted."""
    file = folder / "job.yaml"
    file.write_text(f"pipeline: {{output: {folder / 'shards'}}}\n")
    made = dataset_json.settled(load(file, words))
    return made.get(PipelineConfig).dtype, made.get(ClusterConfig).accept_slow_dtype


def test_the_type_of_the_codec_is_recorded_and_does_not_follow_the_hardware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def machine(*, bfloat16: bool) -> None:
        monkeypatch.setattr(dataset_json, "hardware", lambda device: Hardware("a CPU", "cpu", bfloat16, "some feature"))

    shards = tmp_path / "shards"
    shards.mkdir()
    machine(bfloat16=False)
    assert settled(tmp_path) == ("float32", False)
    machine(bfloat16=True)
    assert settled(tmp_path) == ("bfloat16", False)
    for recorded in ("float32", "bfloat16"):
        (shards / "dataset.json").write_text(json.dumps({"pipeline": {"dtype": recorded}}))
        for has in (True, False):
            machine(bfloat16=has)
            assert settled(tmp_path) == (recorded, False)
            assert settled(tmp_path, f"pipeline.dtype={recorded}") == (recorded, True), "said by the user: workers only warn"
    (shards / "dataset.json").write_text(json.dumps({"pipeline": {"batch": 4}}))
    assert settled(tmp_path) == ("float32", False), "folders of earlier versions"


def test_workers_with_gpus_that_the_driver_lacks_take_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_json, "default_device", lambda: "cpu")
    assert settled(tmp_path, "pipeline.gpus_per_worker=1") == ("bfloat16", False)
