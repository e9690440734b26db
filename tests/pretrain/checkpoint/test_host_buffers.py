"""Host memory of checkpoints: reused, filled late, each tensor with a storage of its own, on disk where memory is short."""

from __future__ import annotations

import errno
import io
import os
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from pretrain.checkpoint import host_buffers
from pretrain.checkpoint.host_buffers import HostBuffers, free_memory, lacks_memory, mapped
from pretrain.checkpoint.host_copy import on_host
from tests.helpers.side_stream import DelayedStream


def sources() -> list[Tensor]:
    """Types and layouts that a checkpoint may hold: a view, a scalar, nothing, transposed, with gaps."""
    torch.manual_seed(0)
    return [
        torch.randn(1000),
        torch.randn(64, 8).to(torch.bfloat16)[3:5],
        torch.tensor(7.0),
        torch.empty(0),
        torch.randn(6, 4).t(),
        torch.randn(10, 10)[:, ::3],
        torch.arange(5),
    ]


def saved(tensors: list[Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


@pytest.mark.parametrize("on_disk", [False, True])
def test_files_of_host_tensors_are_those_of_plain_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    monkeypatch.setattr(host_buffers, "CHUNK", 256)
    side = DelayedStream()
    buffers = HostBuffers(side)
    buffers.begin(tmp_path if on_disk else None)
    given = sources()
    host = [buffers.take(tensor) for tensor in given]
    copies = buffers.start()
    assert (side.copies > len(given)) == on_disk, "with memory on disk all is copied by now, in pieces; else nothing is"
    copies.finish()
    assert saved(host) == saved([on_host(tensor) for tensor in given])
    assert list(tmp_path.iterdir()) == [], "memory on disk has no name"
    assert sorted(side.locked.values()) == ([256, 256] if on_disk else sorted(t.nbytes for t in given if t.numel()))


def test_memory_is_allocated_once_and_only_for_what_changed_again() -> None:
    side = DelayedStream()
    buffers = HostBuffers(side)
    buffers.allocate([400, 80])
    places = []
    for first in (100, 100, 50):
        buffers.begin()
        places.append([buffers.take(torch.ones(first)).data_ptr(), buffers.take(torch.ones(20)).data_ptr()])
        buffers.start().finish()
    assert places[0] == places[1] and places[2][1] == places[0][1]
    assert side.locks == 3 and sorted(side.locked.values()) == [80, 200]


def test_what_is_copied_lives_until_it_is() -> None:
    side = DelayedStream()
    buffers = HostBuffers(side)
    buffers.begin()
    source = torch.arange(10.0)
    host, gone = buffers.take(source), weakref.ref(source.untyped_storage())
    copies = buffers.start()
    del source
    assert gone() is not None
    copies.finish()
    assert host.tolist() == list(range(10)) and copies.sources == []


def test_memory_that_cannot_be_locked_is_told_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    side = DelayedStream()
    monkeypatch.setattr(side, "lock", lambda memory: "the driver refused")
    buffers = HostBuffers(side)
    buffers.begin()
    host = buffers.take(torch.ones(3))
    buffers.start().finish()
    assert buffers.problem == "the driver refused" and host.tolist() == [1, 1, 1]


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, begin: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    buffers = HostBuffers(DelayedStream())
    buffers.begin(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        buffers.take(torch.ones(3))
    assert list(tmp_path.iterdir()) == []


def test_mapped_memory_is_of_exactly_the_size_that_was_asked_for() -> None:
    assert [mapped(size).untyped_storage().nbytes() for size in (0, 1, 5000)] == [0, 1, 5000]


def test_a_host_lacks_memory_if_its_ranks_together_do() -> None:
    told = [("a", 100, 900), ("b", 100, 240), ("b", 100, 239), ("c", 100, 120)]
    assert lacks_memory(told) == {"b": (240, 239)}


def test_free_memory_knows_the_limit_of_a_container(tmp_path: Path) -> None:
    assert 0 < free_memory(tmp_path) <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 1000
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4500\n")
    (tmp_path / "memory.stat").write_text("anon 4000\ninactive_file 300\n")
    assert free_memory(tmp_path) == 800
