import os
import subprocess
import sys
from pathlib import Path

import psutil

from cluster.supervise.processes import command_line, parent_pid, runs_module, tied


def test_a_tied_process_ends_with_its_owner_however_that_dies() -> None:
    owner = (
        "import os, signal, subprocess, sys; from cluster.supervise.processes import tied\n"
        "child = subprocess.Popen(tied([sys.executable, '-c', 'import signal; signal.pause()'], os.getpid()))\n"
        "print(child.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        assert child.is_running()
        process.kill()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert not alive


def test_a_process_tied_to_a_dead_owner_does_not_start() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    assert subprocess.run(tied(["/bin/true"], ended.pid), check=False).returncode == 1
    assert subprocess.run(tied(["/bin/true"], os.getpid()), check=False).returncode == 0


def test_processes_are_found_by_their_module_and_parent(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text("print(1, flush=True)\ninput()\n")
    words = [sys.executable, "-m", "waits"]
    with subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        found = psutil.Process(process.pid)
        assert command_line(found)[1:] == ["-m", "waits"]
        assert runs_module(found, "waits") and not runs_module(found, "wait")
        assert parent_pid(found) == os.getpid()
        process.kill()
    assert command_line(found) == [] and parent_pid(found) == -1
