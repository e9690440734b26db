"""The hostfile: which hosts train, and how many ranks run on each (DeepSpeed's format).

In:  a text file with lines `HOST slots=N`, `#` comments and empty lines.
Out: `Host` records in the file's order; the first is the rendezvous host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cluster.config import ConfigError

_LINE = re.compile(r"^(?P<name>\S+)\s+slots=(?P<slots>\d+)$")


class HostfileError(ConfigError):
    """A hostfile that cannot be used; the message is `file:line: problem; fix`."""


@dataclass(frozen=True)
class Host:
    """One line of the hostfile."""

    name: str
    """Host name or address, as ssh accepts it."""
    slots: int
    """Ranks to run on this host."""
    line: int
    """Line number in the file, from 1."""


def parse_hostfile(text: str, source: str) -> tuple[Host, ...]:
    """Parse the text of a hostfile; `source` is its name in messages.

    Raises HostfileError for a line of any other form, a host that is named twice, a host without slots, or no host at all.
    """
    hosts: dict[str, Host] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.match(line)
        if match is None:
            raise HostfileError(f"{source}:{number}: cannot parse `{line}`; write `HOST slots=N`")
        name, slots = match["name"], int(match["slots"])
        if slots < 1:
            raise HostfileError(
                f"{source}:{number}: host {name} has no slots; set the number of ranks to run on it, such as slots=8"
            )
        if name in hosts:
            raise HostfileError(f"{source}:{number}: host {name} is already on line {hosts[name].line}; keep one of the two")
        hosts[name] = Host(name=name, slots=slots, line=number)
    if not hosts:
        raise HostfileError(f"{source}: contains no host; write one line `HOST slots=N` per host")
    return tuple(hosts.values())


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Read a hostfile. Raises HostfileError, also when the file cannot be read."""
    try:
        text = path.read_text()
    except OSError as error:
        raise HostfileError(f"{path}: cannot read the hostfile: {error.strerror}") from error
    return parse_hostfile(text, str(path))
