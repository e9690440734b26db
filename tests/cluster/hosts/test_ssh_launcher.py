import asyncio
import os
import sys
from pathlib import Path

import pytest

from cluster.hosts.environment import start_command, start_input
from cluster.hosts.hostfile import Host
from cluster.hosts.ssh_launcher import combined_exit_code, launcher_words, run, ssh_command

HOSTS = (Host("a", 1, 1), Host("b", 1, 2))


@pytest.fixture(autouse=True)
def local_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `ssh` that runs the command here; host `lost` cannot be reached."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/ssh"
    program.write_text('#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\n[ "$1" = lost ] && exit 255\nexec sh -c "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("codes", "one"),
    [([], 0), ([0, 0], 0), ([75, 75], 75), ([0, 75], 75), ([75, 1, 247], 1), ([247, 137], 247), ([2, 2], 2), ([1, 2], 2)],
)
def test_the_first_real_failure_counts(codes: list[int], one: int) -> None:
    assert combined_exit_code(codes) == one


def test_each_line_is_led_by_its_host(capfd: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(run(HOSTS, ["echo one; printf 'no end'", "echo two >&2"])) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["[a] no end", "[a] one", "[b] two"]


def test_a_failure_ends_the_hosts_that_would_wait_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    assert asyncio.run(run(HOSTS, ["exit 7", f"read x < {tmp_path}/never"], grace=0.2)) == 7


def test_others_may_end_by_themselves_within_the_grace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "go")
    slow = f"read x < {tmp_path}/go; echo saved; exit 75"
    assert asyncio.run(run(HOSTS, [f"echo x > {tmp_path}/go; exit 75", slow], grace=60)) == 75
    assert "[b] saved" in capfd.readouterr().out


def test_a_host_that_cannot_be_reached_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(run((Host("lost", 1, 1),), ["true"])) == 255
    assert capfd.readouterr().out == "[lost] ssh (exit code 255): could not connect, or lost the connection\n"


def test_the_launcher_of_each_host_gets_its_number(tmp_path: Path) -> None:
    words = launcher_words(1, tmp_path / "hosts", "10.0.0.1", 29_500, ["--module", "m", "run.name=a b"])
    assert words == [
        *(
            str(Path(sys.executable).with_name("deepspeed")),
            "--hostfile",
            str(tmp_path / "hosts"),
            "--no_ssh",
            "--node_rank",
            "1",
        ),
        *("--master_addr", "10.0.0.1", "--master_port", "29500", "--module", "m", "run.name=a b"),
    ]
    assert ssh_command("host", "true")[-3:] == ["--", "host", "true"]


def test_a_host_gets_the_environment_on_its_standard_input_and_255_stays_with_ssh(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    env = {"AWS_SECRET_ACCESS_KEY": "hush", "EDITOR": "vi"}
    show = "import os, sys; print(os.environ['AWS_SECRET_ACCESS_KEY'], os.getcwd(), 'EDITOR' in os.environ); sys.exit(255)"
    commands = [start_command(tmp_path)] * 2
    inputs = [start_input([sys.executable, "-c", text], env) for text in (show, "import os; os.kill(os.getpid(), 9)")]
    assert asyncio.run(run(HOSTS[:1], commands[:1], inputs[:1])) == 1
    assert capfd.readouterr().out == f"[a] hush {tmp_path} {'EDITOR' in os.environ}\n"
    assert asyncio.run(run(HOSTS[1:], commands[1:], inputs[1:])) == 137
    assert "hush" not in commands[0]
