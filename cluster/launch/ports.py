"""Free TCP ports for servers that want their port number before they start.

In:  how many. Out: port numbers that were free a moment ago.
Called by: `launch` (rendezvous), `ray_submit` (Ray's eight servers), `preflight`, tests.

Ports are drawn from below the kernel's ephemeral range, so that no outgoing connection and no
`bind(0)` of a neighbour takes one between this call and the server's own bind.
"""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20_000


def _ceiling() -> int:
    """First port of the ephemeral range (Linux), or its usual place elsewhere."""
    try:
        first = int(_EPHEMERAL.read_text().split()[0])
    except FileNotFoundError:
        first = 32_768
    return first if first > _LOWEST + 1_000 else 65_536


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return `count` different ports that can be bound on `host` now.

    Raises OSError when there are not that many, or `host` is no address of this machine.
    """
    candidates = list(range(_LOWEST, _ceiling()))
    random.SystemRandom().shuffle(candidates)
    found: list[int] = []
    with ExitStack() as held:
        for port in candidates:
            if len(found) == count:
                break
            sock = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                sock.bind((host, port))
            except OSError as error:
                if error.errno is not None and not port_in_use(error):
                    raise OSError(error.errno, f"cannot bind a port on {host}: {error.strerror}") from error
                continue
            found.append(port)
    if len(found) < count:
        raise OSError(f"{host}: found {len(found)} of {count} free ports between {_LOWEST} and {_ceiling()}")
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """Return one free port on `host`. Raises OSError as `free_ports` does."""
    return free_ports(1, host)[0]


def port_in_use(error: OSError) -> bool:
    """Whether a failed bind means that someone else has the port (or may not be asked for it)."""
    return error.errno in (errno.EADDRINUSE, errno.EACCES)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether `port` can be bound on `host` now (as a server that sets SO_REUSEADDR would)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            if port_in_use(error):
                return False
            raise
    return True
