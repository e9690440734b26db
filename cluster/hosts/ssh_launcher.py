"""Runs DeepSpeed's launcher on every host of a hostfile, over ssh or by srun, as one job with one exit code.

In:  hosts, the rendezvous address, the module and its arguments.
Out: the output of every host, each line prefixed with the host's name; one exit code.

The launcher starts it as `python -m cluster.hosts.ssh_launcher`, so that one process group contains all the ssh processes.
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
from cluster.hosts.environment import signal_as_exit_code, start_command, start_input
from cluster.hosts.hostfile import Host, read_hostfile
from cluster.hosts.tether import BEATS, tethered
from cluster.runtime.job_protocol import STOPPED, UNREACHABLE, USAGE

GRACE_SECONDS = 10.0
"""Seconds that the other hosts have to exit by themselves after the first failure."""
HOST_SECONDS = 20.0
"""Seconds after which a host that does not answer is given up, where nothing else is configured."""


def launcher_words(number: int, hostfile: Path, address: str, port: int, words: Sequence[str]) -> list[str]:
    """Return the command of DeepSpeed's launcher on host `number`."""
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hostfile), "--no_ssh"]
    return [*launcher, "--node_rank", str(number), "--master_addr", address, "--master_port", str(port), *words]


def ssh_command(host: str, command: str, seconds: float = HOST_SECONDS) -> list[str]:
    """Return the ssh command that runs `command` on `host`; ssh gives up a host that does not answer for `seconds`."""
    every = max(1, round(seconds / 4))
    limits = (f"ConnectTimeout={max(1, round(seconds))}", f"ServerAliveInterval={every}", "ServerAliveCountMax=3")
    return ["ssh", "-o", "BatchMode=yes", *(word for limit in limits for word in ("-o", limit)), "--", host, command]


Reach = Callable[[str, str, float], list[str]]
"""Returns the words that run a shell command on a host; the last argument: seconds after which one that does not answer is given up."""
REACHES: Mapping[str, Reach] = {"ssh": ssh_command, "slurm": lambda host, command, _: srun_command(os.environ, host, command)}
"""How hosts are reached, by the value of --via."""


def combined_exit_code(codes: Sequence[int]) -> int:
    """Return one exit code for the hosts' codes, in the order in which they ended: 2 if any, else the first failure, else 75, else 0.

    A wrong configuration is no other host's fault, whichever ended first.
    """
    if USAGE in codes:
        return USAGE
    failures = [code for code in codes if code not in (0, STOPPED)]
    return failures[0] if failures else max(codes, default=0)


async def run(
    hosts: Sequence[Host],
    commands: Sequence[str],
    inputs: Sequence[bytes] = (),
    grace: float = GRACE_SECONDS,
    failed_file: Path | None = None,
    seconds: float = HOST_SECONDS,
    reach: Reach = ssh_command,
) -> int:
    """Run one command per host, all at the same time, each with its standard input; returns their combined exit code.

    failed_file: gets the name of the first host that fails. seconds: after which a host that does not answer is given up; within it,
    each command gets a few empty lines more on its standard input (tether.py). reach: how a host is reached.
    """
    codes: list[int] = []

    async def one(host: Host, command: str, given: bytes) -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *reach(host.name, command, seconds), stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        try:
            assert process.stdout is not None and process.stdin is not None
            beating = asyncio.create_task(_feed(process.stdin, given, seconds / BEATS))
            rest = b""
            while data := await process.stdout.read(65_536):
                *lines, rest = (rest + data).split(b"\n")
                print_lines(host.name, lines)
            print_lines(host.name, [rest] if rest else [])
            code = await process.wait()
            beating.cancel()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        code = signal_as_exit_code(code)
        if code == UNREACHABLE and reach is ssh_command:
            print_lines(host.name, [b"ssh (exit code 255): could not connect, or lost the connection"])
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


async def _feed(line: asyncio.StreamWriter, given: bytes, every: float) -> None:
    """Write what a command gets first, then an empty line now and then."""
    with contextlib.suppress(ConnectionError):  # it ended before it read: its exit code says why
        while True:
            line.write(given)
            await line.drain()
            await asyncio.sleep(every)
            given = b"\n"


def print_lines(host: str, lines: Sequence[bytes]) -> None:
    """Print lines of a host, each with its name in front."""
    for line in lines:
        os.write(1, b"[" + host.encode() + b"] " + line + b"\n")


def command_line(prog: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of what the launch tells a launcher of several hosts."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--hostfile", type=Path, required=True)
    parser.add_argument("--master-addr", default="", help="address at which the other hosts reach the first one")
    parser.add_argument("--failed", type=Path, default=None, help="file for the name of the first host that fails")
    parser.add_argument("--master-port", type=int, required=True)
    parser.add_argument("--host-seconds", type=float, default=HOST_SECONDS, help="after which a silent host is given up")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="the rest of DeepSpeed's own command")
    return parser


def main() -> int:
    """Parse the command line, run, return the exit code."""
    parser = command_line("cluster.hosts.ssh_launcher", "Start DeepSpeed's launcher on every host.")
    parser.add_argument("--via", choices=sorted(REACHES), default="ssh", help="how the hosts are reached")
    given = parser.parse_args()
    hosts = read_hostfile(given.hostfile)
    words = given.words[1:] if given.words[:1] == ["--"] else given.words
    address = given.master_addr or hosts[0].name
    each = [launcher_words(number, given.hostfile, address, given.master_port, words) for number in range(len(hosts))]
    commands = [start_command(Path.cwd())] * len(hosts)
    inputs = [start_input(tethered(one, given.host_seconds), os.environ) for one in each]
    reach = REACHES[given.via]
    return asyncio.run(run(hosts, commands, inputs, failed_file=given.failed, seconds=given.host_seconds, reach=reach))


if __name__ == "__main__":
    sys.exit(main())
