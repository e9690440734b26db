import socket
import time

import pytest

from cluster.runtime.ports import CONNECT_SECONDS, free_port, free_ports, is_free, refusal


def test_ports_are_different_and_can_be_bound_together() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    held = []
    for port in ports:
        sock = socket.socket()
        sock.bind(("127.0.0.1", port))
        held.append(sock)
    for sock in held:
        sock.close()


def test_a_port_in_use_is_not_free() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert not is_free(sock.getsockname()[1])
    assert is_free(free_port())


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(OSError, match=r"203\.0\.113\.1"):
        free_port("203.0.113.1")


def test_whether_anybody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert refusal(address) == refusal(f"ray://{address}") == ""
    began = time.monotonic()
    assert refusal(address) == "nothing answers there (Connection refused)"
    assert time.monotonic() - began < 2 * CONNECT_SECONDS
    assert [refusal(name) for name in ("auto", "local", "host:port")] == ["", "", ""], "these only Ray can resolve"
