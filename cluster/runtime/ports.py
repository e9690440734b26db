"""Free TCP ports for servers that need to know their port number before they start.

Ports are drawn from below the kernel's ephemeral range, so that no outgoing connection and no `bind(0)` of another process
takes one between this call and the server's own bind.
"""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20_000


class PortError(OSError):
    """No port can be bound; the message names the address."""


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return `count` different ports that can be bound on `host` now.

    Raises PortError when there are not that many, or `host` is not an address of this machine.
    """
    candidates = list(range(_LOWEST, _end()))
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
                if error.errno is not None and not _in_use(error):
                    raise PortError(f"cannot bind a port on {host}: {error.strerror}") from error
                continue
            found.append(port)
    if len(found) < count:
        raise PortError(f"{host}: found {len(found)} of {count} free ports between {_LOWEST} and {_end()}")
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """Return one free port on `host`. Raises PortError as `free_ports` does."""
    return free_ports(1, host)[0]


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether `port` can be bound on `host` now, by a server that sets SO_REUSEADDR.

    Raises PortError when `host` is not an address of this machine.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            if _in_use(error):
                return False
            raise PortError(f"{host}:{port}: {error.strerror}") from error
    return True


def _end() -> int:
    """Return the first port of the ephemeral range (Linux), or its usual place on other systems."""
    try:
        first = int(_EPHEMERAL.read_text().split()[0])
    except FileNotFoundError:
        first = 32_768
    return first if first > _LOWEST + 1_000 else 65_536


def _in_use(error: OSError) -> bool:
    """Return whether a failed bind means that the port is taken, or reserved for root."""
    return error.errno in (errno.EADDRINUSE, errno.EACCES)
