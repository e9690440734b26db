"""What this project runs on: the versions of Python and PyTorch, and the CPU. Importing `cluster` checks it, in a few milliseconds.

Written so that any Python 3 can read it, and without importing torch.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

PYTHON = ((3, 11), (3, 14))
"""Versions of Python: from the first to below the second. The same range stands in pyproject.toml, and a test compares them."""
TORCH = ((2, 11), (3, 0))
"""Versions of PyTorch: from the first to below the second."""
ANY_CPU = "VIDEOAR_ANY_CPU"
"""Environment variable: with 1, a CPU without AVX2 is accepted."""


def problem(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return in one line, with the mend, what here is not supported; an empty text when all is."""
    return wrong_python(sys.version_info[:2]) or wrong_torch(torch_version()) or wrong_cpu(cpuinfo)


def wrong_python(found: tuple[int, int]) -> str:
    """Return what is wrong with a version of Python, or an empty text."""
    low, high = PYTHON
    if low <= found < high:
        return ""
    return (
        f"needs Python {low[0]}.{low[1]} to {high[0]}.{high[1] - 1}, found {found[0]}.{found[1]} ({sys.executable}); "
        "install one of them and run `make setup PYTHON=/path/to/python`"
    )


def torch_version() -> str:
    """Return the version of the installed torch, read from its metadata; empty when there is none."""
    import importlib.metadata

    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def wrong_torch(version: str) -> str:
    """Return what is wrong with a version of torch, or an empty text. An empty version is no torch, which its import will say."""
    if not version:
        return ""
    low, high = TORCH
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    if not (major.isdigit() and minor.isdigit()) or low <= (int(major), int(minor)) < high:
        return ""
    wanted = f"torch>={low[0]}.{low[1]},<{high[0]}"
    return f"needs {wanted}, found {version} in {sys.prefix}; run `{Path(sys.executable).name} -m pip install '{wanted}'`"


def wrong_cpu(cpuinfo: Path) -> str:
    """Return what is wrong with the CPU that Linux describes in `cpuinfo`, or an empty text. Other systems are not judged."""
    if platform.machine().lower() not in ("x86_64", "amd64") or os.environ.get(ANY_CPU) == "1":
        return ""
    try:
        with cpuinfo.open() as file:
            head = file.read(16384)  # the first core; all of a large machine take long to list
    except OSError:
        return ""
    lines = {}
    for line in reversed(head.splitlines()):
        key, _, value = line.partition(":")
        lines[key.strip()] = value.strip()
    if "avx2" in lines.get("flags", "avx2").split():
        return ""
    return (
        f"this CPU ({lines.get('model name', 'unknown')}) has no AVX2, which PyTorch's CPU kernels need to be of use: run on one that "
        f"has it (since 2013 to 2015), or set {ANY_CPU}=1 to go on many times slower"
    )
