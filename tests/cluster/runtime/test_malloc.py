"""Freed memory stays with the process. In a process of its own, since the setting cannot be taken back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from cluster.runtime.malloc import ENVIRONMENT

PROGRAM = """
import resource, sys, threading
import numpy as np
from cluster.runtime.malloc import keep_freed_memory
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
