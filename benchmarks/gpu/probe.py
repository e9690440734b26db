"""What card there is, asked in a process of its own, so that this one may still fork."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench

CAPABILITY = (8, 0)
"""The first with bfloat16 in its matrix units, and for which FlashAttention is built."""

ASK = (
    "import json, torch; found = torch.cuda.get_device_properties(0); "
    "print(json.dumps([found.name, found.total_memory, found.major, found.minor]), flush=True)"
)


def card(out: Path) -> tuple[str, Bench | None]:
    """Return what is wrong, or the benchmark of card 0."""
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else f" (PyTorch {torch.__version__} is built without CUDA)"
        return f"no CUDA card here{built}; --dry-run runs tiny shapes on a CPU", None
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        os.execv(sys.executable, [sys.executable, "-c", ASK])
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    if not text:
        return "the CUDA card does not answer (the error stands above)", None
    return judge(*json.loads(text), out=out)


def judge(name: str, memory: int, major: int, minor: int, *, out: Path) -> tuple[str, Bench | None]:
    """Return what is wrong with a card, or the benchmark of it."""
    if (major, minor) < CAPABILITY:
        wanted = ".".join(map(str, CAPABILITY))
        return (
            f"{name} has no bfloat16 matrix units (compute capability {major}.{minor}, {wanted} needed): use an A100, H100 or newer",
            None,
        )
    return "", Bench(torch.device("cuda", 0), False, out, out, name=name, memory=memory)
