import socket

import pytest

from cluster.runtime.ports import free_port, free_ports, is_free


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
