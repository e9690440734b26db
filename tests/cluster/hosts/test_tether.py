import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.hosts.tether import tethered

RANK = """
import os, subprocess, sys, time
apart = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
os.write(1, f"{os.getpid()} {apart.pid}\\n".encode())
time.sleep(600)
"""


@pytest.mark.parametrize("line", ["silent", "closed"])
def test_ranks_end_with_their_line_also_those_that_left_their_parent(line: str) -> None:
    words = tethered([sys.executable, "-c", RANK], 2 if line == "silent" else 600)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as tether:
        assert tether.stdout is not None and tether.stdin is not None
        pids = [int(word) for word in tether.stdout.readline().split()]
        if line == "closed":
            tether.stdin.close()
        said = tether.stdout.read().decode()
        assert tether.wait() == 137
    assert ("nothing heard from the launch for 2 s" if line == "silent" else "the launch is gone") in said
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_what_a_launcher_leaves_ends_with_it(tmp_path: Path) -> None:
    """DeepSpeed's launcher may be killed alone: its ranks then belong to nobody."""
    left = tmp_path / "left"
    start = f"import subprocess, sys; p = subprocess.Popen(['sleep', '600']); open({str(left)!r}, 'w').write(str(p.pid)); sys.exit(75)"
    words = tethered([sys.executable, "-c", start], 600)
    with subprocess.Popen(words, stdin=subprocess.PIPE) as tether:
        assert tether.wait() == 75
    assert not psutil.pid_exists(int(left.read_text()))


def test_a_line_that_is_heard_keeps_the_ranks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    words = tethered([sys.executable, "-c", f"open({str(tmp_path / 'go')!r}).read(); raise SystemExit(3)"], 2)
    with subprocess.Popen(words, stdin=subprocess.PIPE) as tether:
        assert tether.stdin is not None
        for _ in range(25):
            tether.stdin.write(b"\n")
            tether.stdin.flush()
            try:
                tether.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        (tmp_path / "go").write_text("")
        assert tether.wait() == 3
