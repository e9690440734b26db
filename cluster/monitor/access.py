"""Who may see the page: anyone on this machine by the loopback address, elsewhere whoever has the token.

In:  the headers and the query of a request. Out: whether it may go on.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from cluster.monitor.folders import MonitorError

TOKEN = "VIDEOAR_MONITOR_TOKEN"
"""Environment variable with the token; secrets are not on command lines, where every user of the machine reads them."""
COOKIE = "videoar_monitor"
SHORTEST = 16
"""Characters of the shortest token that is accepted."""


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def token_for(host: str, file: Path | None) -> str:
    """Return the token to ask for: of the file or the environment, a fresh one for an address others reach, else none.

    Raises MonitorError for one that is too short to be secret.
    """
    try:
        given = file.read_text().strip() if file is not None else os.environ.get(TOKEN, "").strip()
    except UnicodeDecodeError as error:
        raise MonitorError(f"{file}: the token is not text; write one line of letters and digits") from error
    if (given or file is not None) and (len(given) < SHORTEST or not given.isascii() or not given.isprintable()):
        where = str(file) if file is not None else TOKEN
        raise MonitorError(f"{where}: a token has {SHORTEST} characters or more, all ASCII; make one: openssl rand -hex 16")
    return given or ("" if is_loopback(host) else secrets.token_urlsafe(24))


class Access:
    """Decides over requests. token: empty if none is asked for."""

    def __init__(self, token: str) -> None:
        self.token = token

    def permits(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """Return whether a request carries the token; without a token, whether it was sent to the loopback address by name.

        The second keeps out pages of other sites whose name was pointed at 127.0.0.1.
        """
        if not self.token:
            return is_loopback(_host(headers.get("Host", "")))
        bearer = headers.get("Authorization", "").removeprefix("Bearer ")
        return self.is_token(bearer) or self.is_token(cookies.get(COOKIE, ""))

    def is_token(self, given: str) -> bool:
        """Return whether a text is the token, in a time that does not tell how much of it is right."""
        return bool(self.token) and hmac.compare_digest(given.encode(errors="replace"), self.token.encode())


def _host(value: str) -> str:
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.rpartition(":")[0] if ":" in value else value
