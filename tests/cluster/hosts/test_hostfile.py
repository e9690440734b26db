from pathlib import Path

import pytest

from cluster.hosts.hostfile import Host, HostfileError, parse_hostfile, read_hostfile


def test_reads_hosts_in_order_past_comments_and_blank_lines() -> None:
    text = "# two hosts\n\nnode-2 slots=8\n  10.0.0.1   slots=4  # the small one\n"
    assert parse_hostfile(text, "hosts") == (Host("node-2", 8, 3), Host("10.0.0.1", 4, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=2\nb\n", r"^hosts:2: cannot parse `b`; write `HOST slots=N`$"),
        ("a slots=two\n", r"^hosts:1: cannot parse `a slots=two`"),
        ("a slots=2 port=3\n", r"^hosts:1: cannot parse `a slots=2 port=3`"),
        ("a slots=0\n", r"^hosts:1: host a has no slots"),
        ("a slots=1\n# x\na slots=2\n", r"^hosts:3: host a is already on line 1"),
        ("# nothing\n", r"^hosts: contains no host"),
        ("", r"^hosts: contains no host"),
    ],
)
def test_errors_name_file_line_and_mend(text: str, message: str) -> None:
    with pytest.raises(HostfileError, match=message):
        parse_hostfile(text, "hosts")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostfileError, match=r"absent: cannot read the hostfile: No such file"):
        read_hostfile(tmp_path / "absent")


@pytest.mark.parametrize(
    "name",
    ["node-1", "n", "gpu_07.rack3.example.org", "example.org.", "10.0.0.1", "2001:db8::1", "fe80::1%eth0", "0x1f", "a" * 63],
)
def test_names_and_addresses_of_hosts_are_taken(name: str) -> None:
    assert parse_hostfile(f"{name} slots=1", "hosts")[0].name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("root@node", "names a user; .*`User` into the ssh configuration"),
        ("-oProxyCommand=touch${IFS}x", "would be an option of ssh"),
        ("-p22", "would be an option of ssh"),
        ("node:22", "put `Port` into the ssh configuration"),
        ("[2001:db8::1]", "has brackets"),
        ("[2001:db8::1]:22", "has brackets"),
        ("ssh://node", "neither a host name nor an address"),
        ("a;reboot", "is not a host name"),
        ("$(reboot)", "is not a host name"),
        ("a..b", "is not a host name"),
        ("nöde", "is not a host name"),
        ("a" * 64, "is not a host name"),
    ],
)
def test_what_is_no_host_s_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(HostfileError, match=rf"^hosts:2: `.*{message}"):
        parse_hostfile(f"good slots=1\n{name} slots=1\n", "hosts")


def test_each_wrong_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostfileError) as caught:
        parse_hostfile("a slots=1\nroot@b slots=1\nc\nd slots=0\na slots=2\n", "hosts")
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == ["hosts:2:", "hosts:3:", "hosts:4:", "hosts:5:"]


def test_a_byte_order_mark_is_read_and_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_bytes(b"\xef\xbb\xbfnode-1 slots=2\r\n")
    assert read_hostfile(file) == (Host("node-1", 2, 1),)
    file.write_bytes("node-1 slots=2\n".encode("utf-16"))
    with pytest.raises(HostfileError, match=r"hosts: not a text file in UTF-8"):
        read_hostfile(file)
