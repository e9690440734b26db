"""Decoding ahead: whatever the number of lanes and the order of the groups, the same bytes."""

from __future__ import annotations

from pathlib import Path

from pipeline.encoding.encoder import GroupEncoder
from pipeline.shards.manifest import Manifest
from tests.helpers.encoding import config, encode_all
from tests.helpers.fakes import FakeCodec


def test_several_decoders_make_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    _, one = encode_all(folder, config(tmp_path))
    for path in folder.glob("*/shard-*"):
        path.unlink()
    assert encode_all(folder, config(tmp_path, decoders=3))[1] == one


def test_groups_in_another_order_make_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """What an actor was told to prepare may go to another one: the feed then throws away what it decoded ahead."""
    _, wanted = encode_all(folder, config(tmp_path))
    for path in folder.glob("*/shard-*"):
        path.unlink()
    encoder = GroupEncoder(folder, config(tmp_path), FakeCodec())
    last = Manifest(folder).groups() - 1
    encoder.encode(last, 0)
    for group in range(1, last):
        encoder.encode(group, None)
    encoder.encode(0, None)
    encoder.close()
    assert {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/shard-*"))} == wanted
