"""Joining a process group as a launched rank does, and every collective on two ranks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cluster.runtime.ports import free_port
from cluster.runtime.process_group import Ranks

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"), hosts=("here",))
RANK = """
import json, os, sys
import torch
from cluster.runtime.process_group import connect, disconnect, leave

ranks = connect(60.0, 1)
own = torch.tensor([float(ranks.rank), float("nan") if ranks.rank else 4.0, float("nan")])
found = {
    "rank": ranks.rank,
    "world": ranks.world,
    "first": ranks.first,
    "device": str(ranks.device),
    "hosts": len(ranks.hosts),
    "threads": torch.get_num_threads(),
    "sum": ranks.all_reduce(torch.tensor([1.0, ranks.rank])).tolist(),
    "mean": [None if value != value else value for value in ranks.mean(own).tolist()],
    "gathered": ranks.all_gather({"rank": ranks.rank}),
    "broadcast": ranks.broadcast(f"from {ranks.rank}"),
}
ranks.barrier()
with open(f"{sys.argv[1]}/{ranks.rank}.json", "w") as file:
    json.dump(found, file)
disconnect()
leave(75 + ranks.rank)
"""


def test_one_process_needs_no_group() -> None:
    assert ALONE.first and ALONE.all_gather(5) == [5] and ALONE.broadcast("x") == "x"
    assert ALONE.all_reduce(torch.tensor([1.5])).tolist() == [1.5]
    values = ALONE.mean(torch.tensor([2.0, math.nan])).tolist()
    assert values[0] == 2.0 and math.isnan(values[1])
    ALONE.barrier()
    ALONE.meet()
    assert ALONE.from_first(lambda: 7) == 7


WAITING = """
import sys, time
from cluster.config import ConfigError
from cluster.runtime.errors import FirstRankFailed, exit_code
from cluster.runtime.process_group import connect, disconnect, leave

def slow():
    time.sleep(6)
    return "made by rank 0"

def bad():
    raise ConfigError("a key is wrong")

ranks = connect(3.0, 1)
assert ranks.from_first(slow) == "made by rank 0"
time.sleep(6 * ranks.rank)
ranks.meet()
assert ranks.broadcast(ranks.rank) == 0
try:
    ranks.from_first(bad)
except (ConfigError, FirstRankFailed) as error:
    assert isinstance(error, FirstRankFailed) == (ranks.rank > 0)
    leave(exit_code(error))
"""


@pytest.mark.system
def test_work_of_one_rank_may_take_longer_than_a_collective(tmp_path: Path) -> None:
    """Twice as long as `connect` lets a collective wait; an error of rank 0 ends the others with its exit code."""
    assert started(WAITING, str(tmp_path)) == [2, 2]


def started(code: str, *arguments: str) -> list[int]:
    """Run two ranks; returns their exit codes."""
    port, processes = str(free_port()), []
    for rank in range(2):
        env = {**os.environ, "DS_ACCELERATOR": "cpu", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(subprocess.Popen([sys.executable, "-c", code, *arguments], env=env))
    return [process.wait(timeout=300) for process in processes]


@pytest.mark.system
def test_two_ranks_join_and_every_collective_gives_both_the_same(tmp_path: Path) -> None:
    assert started(RANK, str(tmp_path)) == [75, 76]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (found["rank"], found["world"], found["first"]) == (rank, 2, rank == 0)
        assert (found["device"], found["hosts"], found["threads"]) == ("cpu", 2, 1)
        assert found["sum"] == [2.0, 1.0] and found["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert found["mean"] == [0.5, 4.0, None], "a rank's NaN counts as absent; NaN on all ranks stays NaN"
        assert found["broadcast"] == "from 0"
