"""The hostfile: which hosts train, and how many ranks run on each (DeepSpeed's format).

In:  a text file in UTF-8 with lines `HOST slots=N`, `#` comments and empty lines.
     In a Slurm allocation there is no file: its nodes are the hosts.
Out: `Host` records in the file's order; the first is the rendezvous host.

A name becomes a word of ssh's command line and the address that ranks connect to, so it is a host name or an IP address and nothing
else: users, ports and options belong into the ssh configuration.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.batch import slurm
from cluster.config import ConfigError

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LINE = re.compile(r"^(?P<name>\S+)\s+slots=(?P<slots>\d+)$")


class HostfileError(ConfigError):
    """A hostfile that cannot be used; the message has a line `file:line: problem; fix` for each line of it that is wrong."""


@dataclass(frozen=True)
class Host:
    """One line of the hostfile."""

    name: str
    """Host name or address, as ssh accepts it."""
    slots: int
    """Ranks to run on this host."""
    line: int
    """Line number in the file, from 1."""


def wrong_name(name: str) -> str:
    """Return what is wrong with a host's name and how to mend it, or an empty text."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        pass
    else:
        return ""
    if "@" in name:
        return f"`{name}` names a user; write the host alone and put `User` into the ssh configuration"
    if name.startswith("["):
        return f"`{name}` has brackets; write the address without them, and a port into the ssh configuration"
    if ":" in name:
        return f"`{name}` is neither a host name nor an address; write the host alone and put `Port` into the ssh configuration"
    if name.startswith("-"):
        return f"`{name}` would be an option of ssh; put options into the ssh configuration"
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.removesuffix(".").split(".")):
        return f"`{name}` is not a host name; use letters, digits, `-`, `_` and dots"
    return ""


def parse_hostfile(text: str, source: str) -> tuple[Host, ...]:
    """Parse the text of a hostfile; `source` is its name in messages.

    Raises HostfileError for a line of any other form, a name that is no host's, a host that is named twice, a host without slots,
    or no host at all.
    """
    hosts: dict[str, Host] = {}
    problems: list[str] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.match(line)
        if match is None:
            problems.append(f"{source}:{number}: cannot parse `{line}`; write `HOST slots=N`")
            continue
        name, slots = match["name"], int(match["slots"])
        wrong = wrong_name(name)
        if wrong:
            problems.append(f"{source}:{number}: {wrong}")
        elif slots < 1:
            problems.append(
                f"{source}:{number}: host {name} has no slots; set the number of ranks to run on it, such as slots=8"
            )
        elif name in hosts:
            problems.append(f"{source}:{number}: host {name} is already on line {hosts[name].line}; keep one of the two")
        else:
            hosts[name] = Host(name=name, slots=slots, line=number)
    if problems:
        raise HostfileError("\n".join(problems))
    if not hosts:
        raise HostfileError(f"{source}: contains no host; write one line `HOST slots=N` per host")
    return tuple(hosts.values())


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Read a hostfile. Raises HostfileError, also when the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise HostfileError(f"{path}: cannot read the hostfile: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HostfileError(
            f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    return parse_hostfile(text, str(path))


def allocated_hosts(env: Mapping[str, str], ranks: int = 0) -> tuple[Host, ...]:
    """Return the nodes of this process's Slurm allocation. ranks: per node; 0 is one per GPU, or one. Raises SlurmError outside of one."""
    slots = ranks or slurm.gpus_per_node(env) or 1
    return tuple(Host(name, slots, line) for line, name in enumerate(slurm.nodes(env), start=1))
