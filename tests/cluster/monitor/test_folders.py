from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.monitor.folders import MonitorError, NotThere, check, discover, inside


def run_at(folder: Path, when: int = 1000) -> Path:
    folder.mkdir(parents=True)
    (folder / "status.json").write_text("{}")
    os.utime(folder / "status.json", (when, when))
    return folder


def test_runs_are_found_newest_first_and_not_inside_each_other(tmp_path: Path) -> None:
    old, new = run_at(tmp_path / "old", 1000), run_at(tmp_path / "group" / "new", 2000)
    run_at(new / "timing")
    (tmp_path / "empty").mkdir()
    assert discover([tmp_path]) == {"new": new, "old": old}
    assert list(discover([tmp_path])) == ["new", "old"]
    assert discover([new, tmp_path]) == {"new": new, "old": old}, "a run that is named twice is one"


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first, second = run_at(tmp_path / "a" / "demo"), run_at(tmp_path / "b" / "demo")
    assert discover([tmp_path]) == {"a/demo": first, "b/demo": second}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MonitorError, match=r"nowhere: no such folder"):
        check([tmp_path / "nowhere"])
    check([tmp_path])  # empty: runs may come


@pytest.mark.parametrize(
    "path",
    [
        "../secret.mp4",
        "a/../../secret.mp4",
        "/etc/hostname",
        "link.mp4",
        "deep/secret.mp4",
        "none.mp4",
        "x\0.mp4",
        "n" * 5000,
        "",
        ".",
    ],
)
def test_only_files_of_the_run_are_given_out(tmp_path: Path, path: str) -> None:
    run = run_at(tmp_path / "run")
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (run / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (run / "deep").symlink_to(tmp_path)
    (run / "good.mp4").write_bytes(b"x")
    assert inside(run, "good.mp4") == run / "good.mp4"
    with pytest.raises(NotThere) as error:
        inside(run, path)
    assert "secret" not in str(error.value) and str(tmp_path) not in str(error.value)


def test_only_media_are_given_out(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    (run / "page.html").write_text("<script>")
    with pytest.raises(NotThere):
        inside(run, "page.html")
    with pytest.raises(NotThere):
        inside(run, "status.json")
