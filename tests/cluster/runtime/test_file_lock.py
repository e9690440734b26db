from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.runtime.errors import exit_code
from cluster.runtime.file_lock import FileLock, RunFolderError, hold_run, run_holder


def lock(path: Path) -> FileLock:
    return FileLock(path, lambda holder: RuntimeError(f"held by {holder}"))


def test_a_held_lock_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".lock"
    for _ in range(2):
        with (
            lock(path),
            pytest.raises(RuntimeError, match=rf"held by \w+, process {os.getpid()} on .+, since 2\d+-"),
            lock(path),
        ):
            pass
        assert path.read_text() == "", "a free lock names nobody"


def test_an_error_inside_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock(tmp_path / ".lock"):
        raise KeyError
    with lock(tmp_path / ".lock"):
        pass


def test_the_kernel_releases_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cluster.runtime.file_lock import FileLock\n"
        "with FileLock(Path(sys.argv[1]), None): print(1, flush=True); input()"
    )
    words = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(RuntimeError, match=f"process {holder.pid} "), lock(tmp_path / ".lock"):
            pass
        holder.kill()
    with lock(tmp_path / ".lock"):
        pass


def test_without_an_error_to_raise_the_second_waits_for_the_first(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with FileLock(tmp_path / ".lock", None):
            order.append("second")

    thread = threading.Thread(target=second)
    with FileLock(tmp_path / ".lock", None):
        thread.start()
        assert waiting.wait(30)
        thread.join(timeout=0.2)
        order.append("first")
    thread.join(timeout=30)
    assert order == ["first", "second"]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError), lock(tmp_path / "file" / ".lock"):
        pass


def test_a_run_folder_belongs_to_the_job_that_holds_its_lock(tmp_path: Path) -> None:
    assert run_holder(tmp_path) == ""
    with hold_run(tmp_path):
        assert f"process {os.getpid()} on " in run_holder(tmp_path)
        with pytest.raises(
            RunFolderError, match=rf"another job is using this run folder \(.*process {os.getpid()} on .*set run\.dir"
        ):
            hold_run(tmp_path).__enter__()
    assert run_holder(tmp_path) == "", "what the kernel says counts, not what the file says"
    assert exit_code(RunFolderError("")) == 2, "no restart would help"


def test_a_lock_whose_file_was_removed_as_its_holder_ended_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    real = FileLock._take
    taken: list[int] = []

    def removed_once(held: FileLock) -> int:
        taken.append(real(held))
        if len(taken) == 1:
            path.unlink()
        return taken[-1]

    monkeypatch.setattr(FileLock, "_take", removed_once)
    with lock(path):
        assert len(taken) == 2 and path.exists()
        with pytest.raises(RuntimeError, match="held by"), lock(path):
            pass
