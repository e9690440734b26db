"""What a run was started with, and ranks that were not started alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.config import load
from cluster.runtime import source_tree
from cluster.runtime.atomic_files import DamagedFile
from cluster.runtime.source_tree import PACKAGES, code_digest, source_root
from pretrain.runs.provenance import RankMismatch, agree, identity, write_provenance


def test_a_rank_that_differs_is_named() -> None:
    same = {"code": "1", "train.clip": "1.0"}
    agree([same, dict(same)], ["one", "two"])
    with pytest.raises(RankMismatch, match=r"rank 1 on two differs from rank 0 on one: `train\.clip` is 2\.0 there and 1\.0"):
        agree([same, {**same, "train.clip": "2.0"}], ["one", "two"])
    with pytest.raises(RankMismatch, match=r"rank 2 .* `extra` is 1 there and None"):
        agree([same, same, {**same, "extra": "1"}], ["a", "b", "c"])


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the four packages, which takes the place of the installed ones."""
    for package in PACKAGES:
        shutil.copytree(source_root() / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source_tree, "source_root", lambda: tmp_path)
    return tmp_path


def test_the_code_s_digest_sees_a_changed_file_in_any_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest()
    files = [path for package in PACKAGES for path in (copy / package).rglob("*.py")]
    folders = {path.parent: path for path in files}
    assert len(folders) > 30 and copy / "pretrain" / "model" in folders and copy / "cluster" / "runtime" in folders
    for path in folders.values():
        text = path.read_text()
        path.write_text(text + "# changed\n")
        assert code_digest() != before, path
        path.write_text(text)
    assert code_digest() == before
    added = copy / "pretrain" / "model" / "added.py"
    added.touch()
    assert code_digest() != before, "a file that other ranks do not have"
    added.unlink()
    empty = copy / "empty"
    empty.mkdir()
    monkeypatch.setattr(source_tree, "source_root", lambda: empty)
    assert code_digest() != before, "not the digest of no file at all"


def test_ranks_with_different_code_are_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {dir: run}\n")
    config = load(tmp_path / "config.yaml")
    first = identity(config, "d" * 64)
    agree([first, identity(config, "d" * 64)], ["one", "two"])
    with (copy / "pretrain" / "model" / "rope.py").open("a") as file:
        file.write("# changed on one host\n")
    with pytest.raises(RankMismatch, match="rank 1 on two differs from rank 0 on one: `code` is "):
        agree([first, identity(config, "d" * 64)], ["one", "two"])


def test_each_start_is_appended(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {dir: run, seed: 3}\n")
    config = load(tmp_path / "config.yaml")
    for step in (0, 4):
        write_provenance(tmp_path / "run", config, data_digest="d", hosts=("here",), resumed_from=step)
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert [start["resumed_from"] for start in starts] == [0, 4] and starts[0]["code_digest"] == code_digest()
    assert load(tmp_path / "run" / "config.yaml").plain() == config.plain()


def test_a_damaged_record_of_starts_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {dir: run, seed: 3}\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"starts": [{"comm')
    with pytest.raises(DamagedFile, match=r"run\.json: not valid JSON"):
        write_provenance(tmp_path / "run", load(tmp_path / "config.yaml"), data_digest="d", hosts=("here",), resumed_from=0)
