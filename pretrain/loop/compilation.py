"""What torch.compile does in a training job: where it keeps its kernels, what it compiled and why.

In:  whether this job compiles its blocks, a folder for kernels. Out: TORCHINDUCTOR_CACHE_DIR; a line for each compilation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

CACHE = "compiled"
"""Sub-folder of a run."""


def use_cache(root: Path, first: bool, log: Callable[[str], None]) -> None:
    """Keep compiled kernels under `root`, a folder for each version of torch and kind of CPU, unless TORCHINDUCTOR_CACHE_DIR names a place.

    first: whether this is rank 0, which makes the folder and says whether there are others.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    # torch's own key does not tell kinds of CPU apart, and kernels of one compute wrong numbers on another.
    kind = torch.backends.cpu.get_cpu_capability().lower()
    version = f"torch-{torch.__version__}-python-{sys.version_info.major}.{sys.version_info.minor}-{kind}"
    if first and not (root / version).is_dir():
        (root / version).mkdir(parents=True)
        others = sorted(path.name for path in root.iterdir() if path.name != version)
        if others:
            log(f"{root}: kernels of {', '.join(others)} are kept; this is {version}, which compiles its own beside them")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str((root / version).absolute())


class Compilations:
    """What torch.compile has compiled in this process. An idle one says nothing, and spares the compiler's import."""

    def __init__(self, active: bool) -> None:
        self.active = active
        self.new()

    def new(self) -> list[str]:
        """Return a line for each function compiled since the last call: name, seconds, and why it was not the first time."""
        if not self.active:
            return []
        from torch._dynamo.utils import clear_compilation_metrics, get_compilation_metrics

        found = get_compilation_metrics()
        clear_compilation_metrics()
        return [_line(each.co_name, (each.duration_us or 0) / 1e6, each.recompile_reason) for each in found]


def _line(name: str | None, seconds: float, reason: str | None) -> str:
    why = "" if reason is None else ", anew because " + " ".join(reason.split())
    return f"{name or 'a backward pass'} ({seconds:.1f} s{why})"
