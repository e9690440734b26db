"""What a checkpoint costs training: its stall, the rates of its copies and of its files, against writing it at once with torch.save.

    python benchmarks/checkpoint.py [--gigabytes N] [--folder DIR]        (also: videoar bench checkpoint)

The state is that of a rank under ZeRO-3: master weights and two moments in one flat tensor each, and a moving average in slices. It
takes the way that training takes (`pretrain.checkpoint.writer`): a save, work on the device (matrix products for about half a second on
a GPU, none on a CPU), `before_update`, a change of every tensor. The stall is what that takes longer than the same without a save. The
limit is the device's copy to locked host memory, on a CPU a copy within memory; both are measured in the run. What was written is read
back and must be the state at the save. Files go to a folder that is removed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.runtime.atomic_files import sync
from cluster.runtime.checkpoint_folders import listed
from cluster.runtime.process_group import Ranks
from pretrain.checkpoint.deepspeed_io import TAG
from pretrain.checkpoint.host_buffers import CudaSideStream
from pretrain.checkpoint.host_copy import on_host
from pretrain.checkpoint.host_memory import mapped
from pretrain.checkpoint.writer import Checkpoints
from pretrain.engine.ema import Ema
from tests.helpers.made_state import STATE

SLICES = 170
"""Of the moving average: as many as recipe L has parameters."""
ROUNDS, ENOUGH = 2, 15.0
"""Checkpoints to write, and seconds after which no other one is begun."""
WORK = 0.5
"""Seconds of a step's work on a GPU."""
WANTED = 0.5
"""Seconds of stall at 14 GB."""
FILE, WRONG = "optim_states.pt", "what was written is not the state at the save"
Figures = dict[str, Any]


class State:
    """An engine's and its moving average's tensors, handed over as DeepSpeed does."""

    checkpoint_engine: Any = None

    def __init__(self, device: torch.device, gigabytes: float) -> None:
        count = int(gigabytes * 1e9 / 16)
        self.flat = {name: torch.zeros(count, device=device) for name in ("master", "exp_avg", "exp_avg_sq")}
        self.ema = Ema(0.5)
        self.ema.start((f"p{number:03d}", torch.zeros(count // SLICES, device=device)) for number in range(SLICES))
        self.deepspeed = self
        self.tensors = [*self.flat.values(), *self.ema.slices.values()]
        self.bytes = sum(tensor.nbytes for tensor in self.tensors)

    def fill(self, value: float) -> None:
        for tensor in self.tensors:
            tensor.fill_(value)

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        self.checkpoint_engine.save({"optimizer": dict(self.flat)}, f"{folder}/{tag}/{FILE}")

    def _copy_recovery_script(self, folder: str) -> None:
        """No scripts."""


class Loop:
    """A step of training: work on the device, then a change of every tensor."""

    def __init__(self, state: State, saver: Checkpoints, device: torch.device) -> None:
        self.state, self.saver, self.device = state, saver, device
        self._products, self._square = 0, torch.empty(0)
        if device.type == "cuda":
            self._square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
            self._products = 10
            self._work()
            self.synchronize()
            began = time.perf_counter()
            self._work()
            self.synchronize()
            self._products = max(10, round(10 * WORK / (time.perf_counter() - began)))

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _work(self) -> None:
        for _ in range(self._products):
            self._square @ self._square

    def step(self, value: float, save: Callable[[], None] | None = None) -> float:
        """Seconds of a step, which sets all tensors to `value`, with a save before it or without."""
        self.synchronize()
        began = time.perf_counter()
        if save is not None:
            save()
        self._work()
        self.saver.before_update()
        self.state.fill(value)
        self.synchronize()
        return time.perf_counter() - began


def gpu_checkpoint(device: torch.device, gigabytes: float, folder: Path | None = None) -> list[Figures]:
    """Measure checkpoints of `gigabytes` on a device, in at most 40 s for 14 GB on a GPU; the first row carries the bar.

    folder: where a temporary folder is made for 1.3 times that (default: the machine's).
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        state = State(device, gigabytes)
        saver = Checkpoints(Path(work), Ranks(rank=0, world=1, device=device, hosts=("here",)), 1, print)
        loop = Loop(state, saver, device)
        loop.step(-1.0)
        usual = min(loop.step(-1.0) for _ in range(3))
        allocate = allocation(state, saver)
        rounds: list[Figures] = []
        while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - began < ENOUGH):
            rounds.append(one_round(loop, usual, len(rounds) + 1))
        copied, limit, disk = copies(loop), copy_limit(device), write_limit(Path(work))
        direct = plain(state, Path(work))
    stall = max(found["stall_s"] for found in rounds)
    written = min(found["written_s"] for found in rounds)
    bar = {
        "name": f"checkpoint of {state.bytes / 1e9:.1f} GB alone: stall",
        "value": stall,
        "wanted": WANTED,
        "at_most": True,
        "unit": "s",
    }
    figures = {
        "name": "checkpoint", "device": device.type, "gb": state.bytes / 1e9, "stall_s": stall, "rounds": len(rounds),
        "save_call_s": max(found["save_call_s"] for found in rounds), "step_s": usual, "allocate_s": allocate,
        "copy_gb_per_s": state.bytes / copied / 1e9, "copy_limit_gb_per_s": limit, "write_gb_per_s": state.bytes / written / 1e9,
        "write_limit_gb_per_s": disk, "plain_gb": direct["gb"], "plain_s": direct["s"], "plain_gb_per_s": direct["gb"] / direct["s"],
        "seconds": time.perf_counter() - began,
    }  # fmt: skip
    return [bar, figures]


def allocation(state: State, saver: Checkpoints) -> float:
    """Seconds until host memory is allocated and locked; training does not wait for it, this does."""
    began = time.perf_counter()
    saver.prepare(state, state.ema)  # type: ignore[arg-type]
    if saver.buffers is not None:
        saver.buffers.begin()
    return time.perf_counter() - began


def one_round(loop: Loop, usual: float, number: int) -> Figures:
    """One checkpoint of tensors that all hold `number`, beside one step that changes them."""
    state, saver, called = loop.state, loop.saver, list[float]()
    state.fill(float(number))

    def save() -> None:
        given = replace(STATE, step=number, world=1, zero_stage=3)
        called.append(saver.save(state, given, state.ema, "bench: {}\n"))  # type: ignore[arg-type]

    loop.synchronize()
    began = time.perf_counter()
    seconds = loop.step(-float(number), save)
    saver.finish()
    written = time.perf_counter() - began - called[0]
    found = listed(saver.root)[0]
    assert (found / "DONE").is_file() and found.name.endswith(str(number)), "the checkpoint is not whole"
    flat = torch.load(found / TAG / FILE, mmap=True, weights_only=True)["optimizer"]
    assert all(float(tensor[place]) == number for tensor in flat.values() for place in (0, -1)), WRONG
    with safe_open(found / "ema-00000-of-00001.safetensors", "pt") as file:
        for name in (f"p{0:03d}", f"p{SLICES - 1:03d}"):
            assert bool((file.get_tensor(name) == number).all()), WRONG
    return {"stall_s": max(0.0, seconds - usual), "save_call_s": called[0], "written_s": written}


def copies(loop: Loop) -> float:
    """Seconds of the copies with nothing beside them."""
    state, saver = loop.state, loop.saver
    loop.synchronize()
    began = time.perf_counter()
    if saver.buffers is None:
        for tensor in state.tensors:
            on_host(tensor)
    else:
        saver.buffers.begin()
        for tensor in state.tensors:
            saver.buffers.take(tensor)
        saver.buffers.start().finish()
    return time.perf_counter() - began


def copy_limit(device: torch.device) -> float:
    """GB per second of one large copy to host memory: of a GPU to locked memory, else within memory that is there already."""
    source = torch.ones(2**28, device=device)
    host = mapped(source.nbytes).view(torch.float32)
    best = 0.0
    if device.type == "cuda":
        side = CudaSideStream(device)
        problem = side.lock(host)
        assert not problem, problem
        for _ in range(3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            host.copy_(source, non_blocking=True)
            end.record()
            end.synchronize()
            best = max(best, source.nbytes / begin.elapsed_time(end) / 1e6)
        side.unlock(host.data_ptr())
        return best
    for _ in range(3):
        began = time.perf_counter()
        host.copy_(source)
        best = max(best, source.nbytes / (time.perf_counter() - began) / 1e9)
    return best


def write_limit(work: Path) -> float:
    """GB per second of a plain file of 1 GB, synced to disk."""
    data, path = memoryview(mapped(10**9).numpy()), work / "plain"
    began = time.perf_counter()
    path.write_bytes(data)
    sync(path)
    seconds = time.perf_counter() - began
    path.unlink()
    return 1 / seconds


def plain(state: State, work: Path) -> Figures:
    """Seconds of torch.save of the first flat tensor and of a fourth of the average, synced, while training waits."""
    part = {"optimizer": state.flat["master"], "ema": dict(list(state.ema.slices.items())[: SLICES // 4])}
    size = state.flat["master"].nbytes + sum(tensor.nbytes for tensor in part["ema"].values())
    path = work / "plain.pt"
    began = time.perf_counter()
    torch.save(part, path)
    sync(path)
    return {"gb": size / 1e9, "s": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, help="size of the state (default: 14 on a GPU, 0.5 on a CPU)")
    parser.add_argument("--folder", type=Path, help="where the files go for the time of the measurement")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bar, found = gpu_checkpoint(device, given.gigabytes or (14.0 if device.type == "cuda" else 0.5), given.folder)
    for name, value in found.items():
        print(f"{name:>22}  {value:.3f}" if isinstance(value, float) else f"{name:>22}  {value}")
    direct = found["gb"] / found["plain_gb_per_s"]
    print(
        f"stall {bar['value']:.3f} s; torch.save of {found['plain_gb']:.2f} GB took {found['plain_s']:.2f} s: {direct:.2f} s for all"
    )
    limit = found["gb"] / found["copy_limit_gb_per_s"]
    line = {
        "name": "checkpoint", "unit": "s of stall", "ours": bar["value"], "plain": direct, "ratio": direct / max(bar["value"], 1e-9),
        "limit": limit, "limit_share": limit / max(bar["value"], 1e-9), **found,
    }  # fmt: skip
    print(json.dumps(line | {"name": "checkpoint"}))


if __name__ == "__main__":
    main()
