from __future__ import annotations

import hmac
from pathlib import Path

import pytest

from cluster.monitor.access import COOKIE, TOKEN, Access, is_loopback, token_for
from cluster.monitor.folders import MonitorError

SECRET = "0123456789abcdef-secret"


def test_loopback_asks_for_no_token_and_other_addresses_get_a_fresh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.1"):
        assert is_loopback(host) and token_for(host, None) == ""
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org"):
        assert not is_loopback(host)
        assert len(token_for(host, None)) >= 30
        assert token_for(host, None) != token_for(host, None)


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(SECRET + "\n")
    assert token_for("127.0.0.1", file) == SECRET
    monkeypatch.setenv(TOKEN, "from-the-environment")
    assert token_for("0.0.0.0", None) == "from-the-environment"
    assert token_for("0.0.0.0", file) == SECRET
    for bad in ("", "short", "ümlaut-ümlaut-ümlaut", "two lines of\ncharacters that are long"):
        file.write_text(bad)
        with pytest.raises(MonitorError, match=r"a token has 16 characters or more") as error:
            token_for("0.0.0.0", file)
        assert not bad or bad not in str(error.value), "the token is not printed"


def test_who_may_see() -> None:
    access = Access(SECRET)
    assert access.permits({"Authorization": f"Bearer {SECRET}"}, {})
    assert access.permits({}, {COOKIE: SECRET})
    for headers, cookies in (
        ({}, {}),
        ({"Authorization": "Bearer x"}, {}),
        ({}, {COOKIE: SECRET[:-1]}),
        ({"Host": "127.0.0.1"}, {}),
    ):
        assert not access.permits(headers, cookies)
    assert not access.is_token("") and not Access("").is_token("")


def test_without_a_token_only_this_machine_by_name() -> None:
    access = Access("")
    for host in ("127.0.0.1:8300", "localhost:8300", "localhost", "[::1]:8300"):
        assert access.permits({"Host": host}, {})
    for host in ("evil.example:8300", "", "127.0.0.1.evil.example"):
        assert not access.permits({"Host": host}, {})


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def watched(first: bytes, second: bytes) -> bool:
        seen.append((first, second))
        return first == second

    monkeypatch.setattr(hmac, "compare_digest", watched)
    assert Access(SECRET).is_token(SECRET)
    assert seen == [(SECRET.encode(), SECRET.encode())]
