"""Runs DeepSpeed's launcher on every host of a hostfile, over ssh or by srun, as one job with one exit code.

In:  hosts, the rendezvous address, the module and its arguments.
Out: the output of every host, each line prefixed with the host's name; one exit code.

The launcher starts it as `python -m cluster.launch.ssh_launcher`, so that one process group contains all the ssh processes.
DeepSpeed's own start over pdsh is not used: when a rank dies, pdsh keeps waiting for the other hosts, whose ranks wait for the
dead one. Here the first host that fails ends the job, after a grace period in which the others may exit by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.batch.slurm import srun_command
from cluster.launch.environment import start_command, start_input
from cluster.launch.hostfile import Host, read_hostfile
from cluster.runtime.exit_codes import STOPPED, UNREACHABLE

GRACE_SECONDS = 10.0
"""Seconds that the other hosts have to exit by themselves after the first failure."""


def launcher_words(number: int, hostfile: Path, address: str, port: int, words: Sequence[str]) -> list[str]:
    """Return the command of DeepSpeed's launcher on host `number`."""
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hostfile), "--no_ssh"]
    return [*launcher, "--node_rank", str(number), "--master_addr", address, "--master_port", str(port), *words]


def ssh_command(host: str, command: str) -> list[str]:
    """Return the ssh command that runs `command` on `host`; ssh gives up a host that stops answering after 20 s."""
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4"]
    return ["ssh", *options, "--", host, command]


Reach = Callable[[str, str], list[str]]
"""Returns the words that run a shell command on a host."""
REACHES: Mapping[str, Reach] = {"ssh": ssh_command, "slurm": lambda host, command: srun_command(os.environ, host, command)}
"""How hosts are reached, by the value of --via."""


def combined_exit_code(codes: Sequence[int]) -> int:
    """Return one exit code for the hosts' codes, in the order in which the hosts ended: the first failure, else 75, else 0."""
    failures = [code for code in codes if code not in (0, STOPPED)]
    return failures[0] if failures else max(codes, default=0)


async def run(
    hosts: Sequence[Host],
    commands: Sequence[str],
    inputs: Sequence[bytes] = (),
    grace: float = GRACE_SECONDS,
    failed_file: Path | None = None,
    reach: Reach = ssh_command,
) -> int:
    """Run one command per host, all at the same time, each with its standard input; returns their combined exit code.

    failed_file: gets the name of the first host that fails. reach: how a host is reached.
    """
    codes: list[int] = []

    async def one(host: Host, command: str, given: bytes) -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *reach(host.name, command), stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        try:
            assert process.stdout is not None and process.stdin is not None
            with contextlib.suppress(ConnectionError):  # it ended before it read: its exit code says why
                process.stdin.write(given)
                await process.stdin.drain()
            process.stdin.close()
            rest = b""
            while data := await process.stdout.read(65_536):
                *lines, rest = (rest + data).split(b"\n")
                _print(host.name, lines)
            _print(host.name, [rest] if rest else [])
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        code = code if code >= 0 else 128 - code
        if code == UNREACHABLE and reach is ssh_command:
            _print(host.name, [b"ssh (exit code 255): could not connect, or lost the connection"])
        if failed_file is not None and code not in (0, STOPPED) and not any(each not in (0, STOPPED) for each in codes):
            failed_file.write_text(f"{host.name}\n")
        codes.append(code)

    waiting = {
        asyncio.create_task(one(host, command, given))
        for host, command, given in zip(hosts, commands, inputs or [b""] * len(hosts), strict=True)
    }
    while waiting:
        failed = any(code != 0 for code in codes)
        done, waiting = await asyncio.wait(waiting, timeout=grace if failed else None, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if failed and not done:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            break
    return combined_exit_code(codes)


def _print(host: str, lines: Sequence[bytes]) -> None:
    for line in lines:
        os.write(1, b"[" + host.encode() + b"] " + line + b"\n")


def main() -> int:
    """Parse the command line, run, return the exit code."""
    parser = argparse.ArgumentParser(
        prog="cluster.launch.ssh_launcher", description="Start DeepSpeed's launcher on every host."
    )
    parser.add_argument("--hostfile", type=Path, required=True)
    parser.add_argument("--via", choices=sorted(REACHES), default="ssh", help="how the hosts are reached")
    parser.add_argument("--master-addr", default="", help="address at which the other hosts reach the first one")
    parser.add_argument("--failed", type=Path, default=None, help="file for the name of the first host that fails")
    parser.add_argument("--master-port", type=int, required=True)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="the rest of DeepSpeed's own command")
    given = parser.parse_args()
    hosts = read_hostfile(given.hostfile)
    words = given.words[1:] if given.words[:1] == ["--"] else given.words
    address = given.master_addr or hosts[0].name
    each = [launcher_words(number, given.hostfile, address, given.master_port, words) for number in range(len(hosts))]
    commands = [start_command(Path.cwd())] * len(hosts)
    inputs = [start_input(one, os.environ) for one in each]
    return asyncio.run(run(hosts, commands, inputs, failed_file=given.failed, reach=REACHES[given.via]))


if __name__ == "__main__":
    sys.exit(main())
