"""State copied to host memory, and files hashed while they are written."""

from __future__ import annotations

from pathlib import Path

import torch

from cluster.runtime import checkpoint_folders
from pretrain.checkpoint.host_copy import copied, write_torch


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
