"""What one host says of itself before a job: `python -m cluster.launch.host_facts FACTS` on each host, as the launcher starts ranks.

In:  a JSON object: {"config": file, "folders": [...], "mark": file that another host wrote} or {"reduce": {"rank", "world", "port",
     "address"}}. Out: one JSON object on the last line.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from cluster.config.precision import describe
from cluster.runtime.memory import free_memory
from cluster.runtime.source_tree import code_digest

PACKAGES = ("torch", "deepspeed", "numpy", "pyarrow", "zstandard", "ray", "safetensors")
"""Packages that must be alike on all hosts."""
REDUCE_BYTES, ROUNDS = 64 * 1024**2, 5
"""Size of the measured all-reduce, and how often it is repeated."""
REDUCE_SECONDS = 60.0
"""Seconds that the hosts have to find each other."""


def facts(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of this host."""
    import torch

    began = time.time()
    gpus = 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else torch.cuda.device_count()
    config = Path(asked["config"])
    mark = Path(asked["mark"])
    return {
        "host": socket.gethostname(),
        "time": began,
        "python": platform.python_version(),
        "code": code_digest()[:12],
        "configuration": hashlib.sha256(config.read_bytes()).hexdigest()[:12] if config.is_file() else f"no {config}",
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": [torch.cuda.get_device_name(number) for number in range(gpus)],
        "dtype": describe(),
        "memory_gb": round(free_memory() / 1e9, 1),
        "free_gb": {folder: _free(Path(folder)) for folder in asked["folders"]},
        "mark": mark.read_text() if mark.is_file() else "",
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _free(folder: Path) -> float:
    """Return the GB that are free where `folder` is, or will be; negative where it cannot be written."""
    while not folder.exists():
        folder = folder.parent
    return round(shutil.disk_usage(folder).free / 1e9, 1) if os.access(folder, os.W_OK) else -1.0


def reduce(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Join the other hosts in an all-reduce; returns its speed, in GB/s of the tensor, and the sum of the ranks' numbers."""
    import torch
    from torch import distributed

    on_gpu = os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://{asked['address']}:{asked['port']}",
        rank=asked["rank"],
        world_size=asked["world"],
        timeout=timedelta(seconds=REDUCE_SECONDS),
    )
    try:
        values = torch.full((REDUCE_BYTES // 4,), float(asked["rank"]), device=device)
        distributed.all_reduce(values)
        total = float(values[0].item())
        began = time.perf_counter()
        for _ in range(ROUNDS):
            distributed.all_reduce(values)
        float(values[0].item())  # waits for the device
        return {"sum": total, "gb_per_second": ROUNDS * REDUCE_BYTES / 1e9 / (time.perf_counter() - began)}
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(reduce(given["reduce"]) if "reduce" in given else facts(given)))
