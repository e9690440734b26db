"""What a run was started with: code, packages, hosts, data and configuration; and whether all ranks were started alike.

In:  the configuration, the data digest, the installed code. Out: RUN/config.yaml, RUN/run.json with one entry per start; a
     `RankMismatch` that names the rank and the difference.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.config import Config, ConfigError
from cluster.config.differences import flat
from cluster.runtime.atomic_files import read_json, write_text
from cluster.runtime.job_protocol import restart_count
from cluster.runtime.source_tree import code_digest, source_root

NUMERIC_PACKAGES = ("torch", "deepspeed", "numpy", "pyarrow", "zstandard", "safetensors")
"""Packages whose version may change the numbers."""


class RankMismatch(ConfigError):
    """Ranks started with different code or settings; the message names the rank and the difference."""


def identity(config: Config, data_digest: str) -> dict[str, str]:
    """Return what must be equal on all ranks, one entry per setting so that a difference can be named."""
    found = {"code": code_digest()[:12], "data": data_digest[:12], "python": platform.python_version()}
    found.update({f"package {name}": version for name, version in versions().items()})
    for name, section in config.plain().items():
        if name not in ("cluster", "metrics", "corpus"):
            found.update({key: json.dumps(value) for key, value in flat(section, name).items()})
    return found


def agree(identities: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> None:
    """Raise RankMismatch if a rank differs from rank 0; it names the rank, its host and the first difference."""
    first = identities[0]
    for rank, other in enumerate(identities):
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key):
                raise RankMismatch(
                    f"rank {rank} on {hosts[rank]} differs from rank 0 on {hosts[0]}: `{key}` is {other.get(key)} there and "
                    f"{first.get(key)} on rank 0; start all ranks with the same code and configuration"
                )


def versions() -> dict[str, str]:
    """Return the versions of NUMERIC_PACKAGES."""
    return {name: importlib.metadata.version(name) for name in NUMERIC_PACKAGES}


def commit() -> str:
    """Return the git commit of the code, with `+changes` if files differ, or an empty text outside a clone."""
    root = source_root()
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def write_provenance(
    run: Path, config: Config, *, data_digest: str, hosts: Sequence[str], resumed_from: int, dtype: str = ""
) -> None:
    """Write RUN/config.yaml and append this start to RUN/run.json. dtype: the line on the type that was settled."""
    write_text(run / "config.yaml", config.yaml())
    path = run / "run.json"
    starts: list[Any] = read_json(path)["starts"] if path.is_file() else []
    starts.append(
        {
            "commit": commit(),
            "code_digest": code_digest(),
            "python": platform.python_version(),
            "packages": versions(),
            "hosts": list(hosts),
            "data_digest": data_digest,
            "config_digest": config.digest(),
            "dtype": dtype,
            "resumed_from": resumed_from,
            "restarts": restart_count(),
        }
    )
    write_text(path, json.dumps({"starts": starts}, indent=1) + "\n")
