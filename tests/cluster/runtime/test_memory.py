"""What is free; freed memory stays with the process: in a process of its own, since the setting cannot be taken back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.runtime.memory import ENVIRONMENT, free_memory

PROGRAM = """
import resource, sys, threading
import numpy as np
from cluster.runtime.memory import keep_freed_memory
def work():
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [np.ones(size * 2**20, np.uint8) for size in (8, 24, 80)]
        del blocks
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(min(faults[1:]))
if sys.argv[1] == "keep":
    assert keep_freed_memory()
if sys.argv[1] == "thread":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""


def faults(how: str, **environment: str) -> int:
    """Page faults of the best later round, of three blocks of which one is over glibc's limit for its heap."""
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_second_round_faults_no_pages_in() -> None:
    kept, plain = faults("keep"), faults("plain")
    assert kept < 100
    assert plain > 30 * max(1, kept), "without it the pages come anew; then this file has nothing to do"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_the_environment_does_it_for_threads() -> None:
    assert faults("thread", **ENVIRONMENT) < 100


def test_free_memory_knows_the_limit_of_a_container(tmp_path: Path) -> None:
    assert 0 < free_memory(tmp_path) <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 1000
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4500\n")
    (tmp_path / "memory.stat").write_text("anon 4000\ninactive_file 300\n")
    assert free_memory(tmp_path) == 800
