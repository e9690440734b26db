"""Host memory for checkpoints: page-locked, allocated once, filled by a stream of its own beside training.

In:  tensors on a device, the same ones in the same order for each checkpoint.
Out: tensors in host memory that receive their values: at once on a CPU, behind the next forward and backward on a GPU.

A tensor's memory is its own, so `torch.save` writes it as it would write any copy. Where a host has too little memory for all of it,
the copies go through two chunks of page-locked memory into files on disk that are mapped into memory and have no name; then training
waits until they are made.
"""

from __future__ import annotations

import functools
import mmap
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pretrain.checkpoint.host_memory import Mapping, cleared, mapped

CHUNK = 64 * 2**20
"""Bytes of each of the two chunks."""


class Mark(Protocol):
    """A place in a stream, like `torch.cuda.Event`."""

    def wait(self) -> None:
        """Let the training stream wait until the stream has come here; the host goes on."""

    def synchronize(self) -> None:
        """Let the host wait."""


class SideStream(Protocol):
    """A device's queue of copies beside the queue in which it trains."""

    def takes(self, tensor: Tensor) -> bool:
        """Return whether the tensor is on this device."""

    def follow(self) -> None:
        """Begin what is queued next only after all that training has queued so far."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy."""

    def mark(self) -> Mark:
        """Mark this place in the queue."""

    def lock(self, memory: Tensor) -> str:
        """Lock the pages of host memory, without which a copy stops the host; returns what went wrong, or an empty text."""

    def unlock(self, address: int) -> None:
        """Unlock memory that was locked, before it goes back to the system."""


class CudaSideStream:
    """A stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def takes(self, tensor: Tensor) -> bool:
        """Return whether the tensor is on a GPU."""
        return tensor.is_cuda

    def follow(self) -> None:
        """Wait in this stream for the current one."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy to locked memory."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        """Record an event."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event  # type: ignore[return-value]

    def lock(self, memory: Tensor) -> str:
        """Register the memory with the driver (1: for all of its contexts)."""
        code = self._call("cudaHostRegister", memory.data_ptr(), memory.nbytes, 1)
        return f"cudaHostRegister of {memory.nbytes / 1e9:.2f} GB: error {code}" if code else ""

    def unlock(self, address: int) -> None:
        """Take the memory from the driver, which would else believe that what is mapped at this address later is locked."""
        self._call("cudaHostUnregister", address)

    def _call(self, name: str, *arguments: int) -> int:
        """Call the driver in a thread of its own: an error stays with its thread, and would be told at the next kernel of this one."""
        codes: list[int] = []

        def call() -> None:
            with torch.cuda.device(self._stream.device):  # a new thread would go to the first GPU
                codes.append(int(getattr(torch.cuda.cudart(), name)(*arguments)))

        thread = threading.Thread(target=call, name=name)
        thread.start()
        thread.join()
        return codes[0] if codes else -1


@dataclass
class Copies:
    """Copies under way. The sources are kept alive until the copies are made."""

    mark: Mark
    sources: list[Tensor] = field(repr=False)

    def finish(self) -> None:
        """Wait on the host until they are made."""
        self.mark.synchronize()
        self.sources.clear()


class _Done:
    """The mark of copies that are made already."""

    def wait(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class HostBuffers:
    """The host memory of one rank's checkpoints: `begin`, `take` for each tensor, `start`.

    What was taken is overwritten by the next checkpoint: it must be written by then.
    """

    def __init__(self, side: SideStream) -> None:
        self._side = side
        self._memory: list[Tensor] = []
        self._chunks: list[Tensor] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._taken = 0
        self._allocating: threading.Thread | None = None
        self._spill: Path | None = None
        self.problem = ""
        """Why memory could not be locked; the copies are right without, but the host waits for them."""

    def allocate(self, sizes: Sequence[int]) -> None:
        """Begin to allocate and lock memory of these sizes in bytes, in a thread: pages have to be cleared, seconds for 14 GB."""
        self._allocating = threading.Thread(target=self._allocate, args=(list(sizes),), name="checkpoint-memory", daemon=True)
        self._allocating.start()

    def _allocate(self, sizes: list[int]) -> None:
        for size in sizes:
            self._memory.append(self._locked(size))

    def _locked(self, size: int) -> Tensor:
        if not size:
            return mapped(0)
        mapping = Mapping(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory = cleared(mapping)
        problem = self._side.lock(memory)
        if problem:
            self.problem = problem
        else:
            mapping.release = functools.partial(self._side.unlock, memory.data_ptr())
        return memory

    def begin(self, spill: Path | None = None) -> None:
        """Begin a checkpoint. spill: folder for memory on disk, where the host has too little."""
        if self._allocating is not None:
            self._allocating.join()
            self._allocating = None
        self._taken, self._pairs, self._spill = 0, [], spill

    def take(self, source: Tensor) -> Tensor:
        """Return the host tensor that will receive `source`. Raises OSError if there is no room on disk for it."""
        source = source.detach()
        if not self._side.takes(source):
            return source.to("cpu", copy=True)
        host = _like(self._next(source.nbytes), source)
        if source.numel():
            self._pairs.append((host, source))
        return host

    def _next(self, size: int) -> Tensor:
        if self._spill is not None:
            return mapped(size, self._spill)
        number, self._taken = self._taken, self._taken + 1
        if number == len(self._memory):
            self._memory.append(self._locked(size))
        elif self._memory[number].nbytes != size:
            self._memory[number] = self._locked(size)
        return self._memory[number]

    def start(self) -> Copies:
        """Queue the copies of all that was taken; with memory on disk, make them."""
        pairs, self._pairs = self._pairs, []
        self._side.follow()
        if self._spill is not None:
            self._through_chunks(pairs)
            return Copies(_Done(), [])
        for host, source in pairs:
            self._side.copy(host, source)
        return Copies(self._side.mark(), [source for _, source in pairs])

    def _through_chunks(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Copy piece by piece: while one chunk is filled, the other one is emptied to disk."""
        if not self._chunks:
            self._chunks = [self._locked(CHUNK), self._locked(CHUNK)]
        waiting: list[tuple[Tensor, Tensor, Mark] | None] = [None, None]
        number = 0
        for host, source in pairs:
            same = source if source.stride() == host.stride() else source.clone()
            for target, piece in zip(_flat(host).split(CHUNK), _flat(same).split(CHUNK), strict=True):
                slot, number = number % 2, number + 1
                _empty(waiting[slot])
                chunk = self._chunks[slot][: piece.nbytes]
                self._side.copy(chunk, piece)
                waiting[slot] = target, chunk, self._side.mark()
        _empty(waiting[number % 2])
        _empty(waiting[(number + 1) % 2])


def _like(memory: Tensor, source: Tensor) -> Tensor:
    """Return `memory` as a tensor of the type, shape and layout of a copy of `source`."""
    shape = torch.empty_like(source, device="meta")
    if not source.numel():
        return torch.empty_like(source, device="cpu")
    return memory.view(source.dtype).as_strided(shape.shape, shape.stride())


def _flat(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor without gaps, in the order of its memory."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _empty(waiting: tuple[Tensor, Tensor, Mark] | None) -> None:
    if waiting is not None:
        target, chunk, mark = waiting
        mark.synchronize()
        target.copy_(chunk)
