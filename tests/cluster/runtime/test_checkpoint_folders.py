"""A checkpoint folder is whole or is no checkpoint: every kind of damage is found, and the one before it is used."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.runtime import checkpoint_folders


def whole(root: Path, step: int) -> Path:
    """A published checkpoint folder: two ranks' files with hashes of their own, and a file that `publish` hashes."""
    final = checkpoint_folders.folder_of(root, step)
    partial = checkpoint_folders.partial_of(root, step)
    (partial / "zero").mkdir(parents=True)
    for rank in range(2):
        content = bytes([rank]) * 500
        (partial / "zero" / f"rank{rank}.pt").write_bytes(content)
        known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (partial / f"files-{rank:05d}.json").write_text(json.dumps({f"zero/rank{rank}.pt": known}))
    (partial / "state.json").write_text(json.dumps({"step": step}))
    checkpoint_folders.publish(partial, final)
    return final


def flip(folder: Path) -> None:
    path = folder / "zero" / "rank1.pt"
    data = bytearray(path.read_bytes())
    data[300] ^= 4
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text()[:-5])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip, "zero/rank1.pt does not match its sha256"),
    "a missing file": (lambda folder: (folder / "zero" / "rank0.pt").unlink(), "zero/rank0.pt is missing"),
    "a cut file": (cut, "state.json has"),
    "no DONE": (lambda folder: (folder / "DONE").unlink(), "DONE is missing"),
    "an empty DONE": (lambda folder: (folder / "DONE").write_text(""), "manifest.json does not match DONE"),
    "another manifest": (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json does not match DONE"),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "manifest.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_clear_line(tmp_path: Path, kind: str) -> None:
    older, newer = whole(tmp_path, 10), whole(tmp_path, 20)
    said: list[str] = []
    assert checkpoint_folders.newest(tmp_path, said.append) == newer and said == []
    ruin, words = DAMAGE[kind]
    ruin(newer)
    assert checkpoint_folders.newest(tmp_path, said.append) == older
    assert len(said) == 1 and "step-00000020" in said[0] and words in said[0]
    flip(older)
    assert checkpoint_folders.newest(tmp_path, said.append) is None


def test_a_partial_folder_is_no_checkpoint_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    tmp_path = tmp_path / "checkpoints"
    assert checkpoint_folders.newest(tmp_path, print) is None
    final = whole(tmp_path, 10)
    (tmp_path / "step-00000020.partial").mkdir()
    (final / "DONE").unlink()
    again = whole(tmp_path, 10)
    checkpoint_folders.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [again.name]
    assert checkpoint_folders.listed(tmp_path) == [again] and checkpoint_folders.damage(again) == ""
    assert sorted(json.loads((again / "manifest.json").read_text())) == ["state.json", "zero/rank0.pt", "zero/rank1.pt"]


def test_checkpoints_from_before_the_hashes_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = checkpoint_folders.folder_of(tmp_path, 5)
    folder.mkdir()
    (folder / "DONE").touch()
    assert checkpoint_folders.damage(folder) == "" and checkpoint_folders.newest(tmp_path, print) == folder


def no_sound_one(found: str) -> Exception:
    return LookupError(found)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_what_lies_above_the_step_that_a_job_resumes_from_is_set_aside(root: Path) -> None:
    """Else it would be counted as a newest checkpoint, and the job's own ones removed for it."""
    made = [whole(root, step) for step in (10, 20, 30, 40)]
    for folder in made[2:]:
        flip(folder)
    said: list[str] = []
    assert checkpoint_folders.resumed(root, said.append, no_sound_one) == made[1]
    assert [line.split(" is ")[0] for line in said] == ["checkpoint step-00000040", "checkpoint step-00000030"]
    assert said[0].endswith(f"it is set aside as {root.parent}/aside/checkpoints/step-00000040")
    keeper = checkpoint_folders.Keeper(root, 1, said.append)
    again = whole(root, 30)
    flip(again)
    keeper.tend()
    assert checkpoint_folders.listed(root) == [made[1]], "the damaged one does not count"
    assert sorted(path.name for path in (root.parent / "aside" / "checkpoints").iterdir()) == [
        "step-00000030", "step-00000030-2", "step-00000040",
    ]  # fmt: skip


def test_only_sound_checkpoints_are_counted_when_old_ones_are_removed(root: Path) -> None:
    made = [whole(root, step) for step in (10, 20, 30, 40, 50)]
    flip(made[3])
    (made[2] / "DONE").unlink()
    said: list[str] = []
    checkpoint_folders.Keeper(root, 2, said.append, lambda folder: folder == made[0]).tend()
    assert checkpoint_folders.listed(root) == [made[4], made[1], made[0]]
    assert len(said) == 2 and list(root.glob("*.partial")) == []


def test_a_job_does_not_begin_anew_where_all_checkpoints_are_damaged(root: Path) -> None:
    assert checkpoint_folders.resumed(root, print, no_sound_one) is None
    for step in (10, 20):
        flip(whole(root, step))
    with pytest.raises(LookupError, match=r"step-00000020: zero/rank1.pt does not match its sha256; step-00000010: zero"):
        checkpoint_folders.resumed(root, print, no_sound_one)
    assert len(checkpoint_folders.listed(root)) == 2, "and nothing is touched"
    assert checkpoint_folders.resumed(root, print, None) is None and checkpoint_folders.listed(root) == []
