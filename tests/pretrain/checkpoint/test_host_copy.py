"""State copied to host memory, and files hashed while they are written."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from cluster.runtime import checkpoint_folders
from pretrain.checkpoint.host_copy import LARGE, copied, write_slices, write_torch


def test_hashing_while_writing_gives_the_file_s_digest(tmp_path: Path) -> None:
    path, size, digest = write_torch(tmp_path / "a.pt", {"x": torch.randn(1000), "words": ["a", 1]})
    assert checkpoint_folders.hashed(path) == (path, size, digest)
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.load(path, weights_only=True)["x"])


def test_a_copy_does_not_follow_the_weights() -> None:
    live = torch.zeros(8)
    taken = copied({"a": [live, (live[2:4],)], "n": 3})
    live.add_(1)
    assert taken["n"] == 3 and taken["a"][0].sum() == 0
    assert taken["a"][1][0].untyped_storage().nbytes() == 8  # a view is copied alone, not with the whole storage behind it


def test_slices_are_written_as_safetensors_would(tmp_path: Path) -> None:
    slices = {"b.weight": torch.randn(700_000), "a.weight": torch.randn(5), "b.ümläut": torch.empty(0), "a.b": torch.randn(1)}
    save_file(slices, tmp_path / "theirs")
    path, size, digest = write_slices(tmp_path / "ours", slices)
    assert path.read_bytes() == (tmp_path / "theirs").read_bytes()
    assert checkpoint_folders.hashed(path) == (path, size, digest)


def test_large_pieces_are_hashed_in_their_order(tmp_path: Path) -> None:
    path, size, digest = write_torch(tmp_path / "a.pt", [torch.randn(1_000_000), torch.randn(10), torch.randn(600_000)])
    assert size > LARGE and checkpoint_folders.hashed(path) == (path, size, digest)
