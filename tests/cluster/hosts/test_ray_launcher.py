import base64
import json
import os
import sys
from pathlib import Path

import pytest

from cluster.hosts.hostfile import Host
from cluster.hosts.ray_launcher import NodeLauncher, bundle, node_words
from cluster.hosts.ray_nodes import Node

HOSTS = (Host("a", 2, 1), Host("b", 3, 2))


def test_the_launcher_of_each_node_gets_its_number_its_devices_and_the_rendezvous() -> None:
    words = node_words(HOSTS, 1, [5, 6, 7], ("10.0.0.1", 29_500))
    assert words[:3] == [sys.executable, "-m", "deepspeed.launcher.launch"]
    world = json.loads(base64.urlsafe_b64decode(words[3].removeprefix("--world_info=")))
    assert world == {"a": [0, 1], "b": [5, 6, 7]} and list(world) == ["a", "b"]
    assert words[4:] == ["--node_rank=1", "--master_addr=10.0.0.1", "--master_port=29500"]


def test_a_bundle_holds_what_the_ranks_take() -> None:
    assert bundle(HOSTS[1], Node("b", "1", "10.0.0.2", 2.0, 8), gpu=True) == {"CPU": 2.0, "GPU": 3.0}
    assert bundle(HOSTS[0], Node("a", "1", "10.0.0.2", 64.0, 0), gpu=False) == {"CPU": 2.0}


def followed(actor: NodeLauncher) -> tuple[list[bytes], int]:
    lines: list[bytes] = []
    while True:
        more, code = actor.follow(10.0)
        lines += more
        if code is not None:
            return lines, code


def test_an_actor_tells_output_and_exit_code_and_passes_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_ID", "7")
    show = "import os; print(os.environ['NCCL_X'], os.getcwd(), 'RAY_JOB_ID' in os.environ); print('no end', end=''); os._exit"
    actor = NodeLauncher()
    actor.start([sys.executable, "-c", f"{show}; raise SystemExit(75)"], {"NCCL_X": "1"}, str(tmp_path), 60)
    assert followed(actor) == ([b"1 " + os.fsencode(tmp_path) + b" False", b"no end"], 75)
    actor = NodeLauncher()
    actor.start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {}, str(tmp_path), 60)
    assert followed(actor) == ([], 137)


def test_ranks_end_when_nobody_follows_them(tmp_path: Path) -> None:
    actor = NodeLauncher()
    actor.start([sys.executable, "-c", "import time; time.sleep(600)"], {}, str(tmp_path), 1)
    assert actor._process is not None and actor._process.wait(60) == 137
    lines, code = followed(actor)
    assert code == 137 and b"nothing heard from the launch for 1 s" in lines[-1]
