"""Host memory of checkpoints: reused, filled late, each tensor with a storage of its own, on disk where memory is short."""

from __future__ import annotations

import errno
import io
import os
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.checkpoint import host_buffers
from pretrain.checkpoint.host_buffers import HostBuffers
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


def test_memory_is_unlocked_when_its_last_tensor_goes_and_not_before() -> None:
    """Memory that went back to the system while a GPU's driver took it for locked would be written to at its old pages."""
    side = DelayedStream()
    buffers = HostBuffers(side)
    buffers.begin()
    host = [buffers.take(torch.ones(100)), buffers.take(torch.ones(7)).view(7, 1)[2:]]
    buffers.start().finish()
    assert len(side.locked) == 2
    del buffers
    assert len(side.locked) == 2 and host[1].tolist() == [[1.0]] * 5
    host.pop()
    assert list(side.locked.values()) == [400]
    host.clear()
    assert side.locked == {}


def test_memory_that_was_not_locked_is_not_unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    side = DelayedStream()
    monkeypatch.setattr(side, "lock", lambda memory: "the driver refused")
    monkeypatch.setattr(side, "unlock", lambda address: pytest.fail("unlocked what was not locked"))
    buffers = HostBuffers(side)
    buffers.begin()
    buffers.take(torch.ones(3))
    del buffers


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
