from pathlib import Path

import pytest

from cluster.launch.hostfile import Host, HostfileError, parse_hostfile, read_hostfile


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
