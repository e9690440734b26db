"""Free TCP ports for servers that need to know their port number before they start, and whether anybody listens at one.

Ports are drawn from below the kernel's ephemeral range, so that no outgoing connection and no `bind(0)` of another process
takes one between this call and the server's own bind.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20_000
CONNECT_SECONDS = 5.0
"""Seconds that a server may take to begin to listen."""
_PAUSE = 0.25


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


def refusal(address: str) -> str:
    """Return why HOST:PORT takes no connection within CONNECT_SECONDS; empty where it does, and for names that only Ray can resolve."""
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        place = (parts.hostname or "", parts.port or 0)
    except ValueError:
        return ""
    if not all(place):
        return ""
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection(place, timeout=max(_PAUSE, end - time.monotonic())).close()
        except OSError as error:
            if time.monotonic() + _PAUSE > end:
                return f"nothing answers there ({error.strerror or error})"
            time.sleep(_PAUSE)
        else:
            return ""


def token_remedy() -> str:
    """Return what else may keep this process out of a Ray cluster; empty where its environment already says so.

    A head asks for the token in the home folder where one is, a client does not give it unless told, and Ray's error hides that.
    """
    told = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    return "" if told else "; if its head asks for a token (as it does where ~/.ray/auth_token is), set RAY_AUTH_MODE=token"


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
