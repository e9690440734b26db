from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from cluster.metrics import heartbeat
from cluster.supervise.stacks import write_stacks
from tests.cluster.metrics.test_heartbeat import until

RANK = """
import sys
from pathlib import Path
from cluster.metrics import Heartbeat
def waits_for_the_others():
    sys.stdin.read()
with Heartbeat(Path(sys.argv[1]), int(sys.argv[2]), every=0.05) as beat:
    beat.at(3, "step")
    waits_for_the_others()
"""


def test_ranks_write_their_stacks_and_one_that_is_stopped_is_read_from_outside(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path), str(rank)], stdin=subprocess.PIPE) for rank in range(2)
    ]
    try:
        until(lambda: len(heartbeat.read(tmp_path)) == 2)
        ranks[1].send_signal(signal.SIGSTOP)
        write_stacks(tmp_path, [psutil.Process(rank.pid) for rank in ranks], patience=2.0)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    own, foreign = (heartbeat.stacks_of(tmp_path, rank).read_text() for rank in range(2))
    assert "rank 0, step 3, step" in own and "waits_for_the_others" in own
    assert "rank 1, silent; read by py-spy" in foreign and "waits_for_the_others" in foreign, foreign


def test_a_job_without_heartbeats_leaves_nothing(tmp_path: Path) -> None:
    write_stacks(tmp_path, [psutil.Process()], patience=0.0)
    assert not (tmp_path / "log").exists()
