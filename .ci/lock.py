"""Resolves requirements.in on every Python that the project runs on and writes one requirements.lock for all: `make lock`.

In:  interpreters of the versions in range. Out: requirements.lock; what differs between the versions of Python carries a marker.
     With --keep, what is locked stays as it is, and only what requirements.in has more is added (`make lock KEEP=1`).
pip resolves without installing (`--dry-run --report`), so no build of torch is downloaded whole.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = (
    "# Made by make lock from requirements.in, for {versions}; torch's own CUDA packages are left to pip, and any build serves."
)
OF_TORCH = ("nvidia-", "cuda-", "triton")
"""Packages of torch's CUDA builds: torch pins them itself, and its CPU builds have none of them."""


def resolve(python: str, more: list[str]) -> tuple[str, dict[str, str]]:
    """Return the version of an interpreter, and package -> version as pip resolves requirements.in for it.

    more: further options of pip.
    """
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as place:
        pip, report = [f"{place}/env/bin/python", "-m", "pip", "--disable-pip-version-check"], Path(place) / "report.json"
        subprocess.run([python, "-m", "venv", f"{place}/env"], check=True)
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
        options = ["--quiet", "--dry-run", "--ignore-installed", "--report", str(report), *more]
        subprocess.run([*pip, "install", *options, "-r", str(ROOT / "requirements.in")], check=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return version, {
        item["name"]: item["version"].removesuffix("+cpu") for item in found if not item["name"].startswith(OF_TORCH)
    }


def merge(resolved: dict[str, dict[str, str]]) -> list[str]:
    """Return the lines of the lock from Python's version -> package -> version."""
    lines = []
    for name in sorted({name for packages in resolved.values() for name in packages}, key=str.lower):
        by_version: dict[str, list[str]] = {}
        for python, packages in resolved.items():
            if name in packages:
                by_version.setdefault(packages[name], []).append(python)
        for version, pythons in by_version.items():
            marker = " or ".join(f'python_version == "{python}"' for python in pythons)
            lines.append(f"{name}=={version}" + ("" if len(pythons) == len(resolved) else f" ; {marker}"))
    return lines


def main(pythons: list[str]) -> None:
    """Write requirements.lock for the given interpreters."""
    keep = ["-c", str(ROOT / "requirements.lock")] if "--keep" in pythons else []
    resolved = dict(resolve(python, keep) for python in pythons if python != "--keep")
    head = HEAD.format(versions=", ".join(resolved))
    (ROOT / "requirements.lock").write_text("\n".join([head, *merge(resolved)]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
