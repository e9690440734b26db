"""A tokenizer folder: tokenizer.json (spec, network configuration, provenance) and tokenizer.safetensors.

In:  a network configuration and its weights, or the path of a folder.
Out: a folder that appears whole or not at all; or what a folder holds, checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from cluster.config.errors import ConfigError, first_problem
from cluster.runtime.atomic_files import replace_folder
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network
from tokenizer.quantization.codec_spec import CodecSpec

FORMAT = 1
JSON_NAME = "tokenizer.json"
WEIGHTS_NAME = "tokenizer.safetensors"


class CodecError(ConfigError):
    """Frames, bits or a tokenizer folder that cannot be used; the message says what to do."""


def digest(config: NetworkConfig, state: Mapping[str, Tensor], scale_lists: Mapping[str, Any] | None = None) -> str:
    """Return the sha256 (hex) of the network's canonical JSON (with scale lists, if any) and its weights in sorted key order."""
    plain: dict[str, Any] = {"network": config.model_dump(mode="json")}
    if scale_lists:
        plain["scales"] = {key: [list(scale) for scale in value] for key, value in scale_lists.items()}
    hasher = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(state):
        weight = state[name].detach().to("cpu").contiguous()
        hasher.update(f"{name}:{weight.dtype}:{tuple(weight.shape)}".encode())
        hasher.update(weight.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def save(
    folder: str | Path,
    network_config: NetworkConfig,
    state_dict: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    scale_lists: Mapping[str, tuple[tuple[int, int], ...]] | None = None,
) -> CodecSpec:
    """Write a tokenizer folder under a temporary name, then rename it into place, replacing an older one; return its spec.

    Raises CodecError for weights that do not fit the configuration or are not finite.
    """
    folder = Path(folder)
    with torch.device("meta"):
        shapes = Network(network_config).shapes()
    state = {name: weight.detach().to("cpu").contiguous() for name, weight in sorted(state_dict.items())}
    check_keys(folder, shapes, {name: tuple(weight.shape) for name, weight in state.items()})
    broken = [name for name, weight in state.items() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise CodecError(f"{folder}: weight `{broken[0]}` is not finite; nothing was written")
    spec = CodecSpec(
        bits=network_config.bits,
        spatial_stride=network_config.spatial_stride,
        temporal_stride=network_config.temporal_stride,
        digest=digest(network_config, state, scale_lists),
        scale_lists=dict(scale_lists or {}),
    )
    record = {
        "format": FORMAT,
        "spec": spec.plain(),
        "network": network_config.model_dump(mode="json"),
        "provenance": dict(provenance),
    }
    fresh = folder.parent / f".{folder.name}.new-{os.getpid()}"
    fresh.mkdir(parents=True)
    safetensors.torch.save_file(state, fresh / WEIGHTS_NAME)
    (fresh / JSON_NAME).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    replace_folder(fresh, folder)
    return spec


def read_json(folder: str | Path) -> tuple[NetworkConfig, CodecSpec, dict[str, Any]]:
    """Read tokenizer.json: network configuration, spec, provenance. Raises CodecError naming the file and what to do."""
    path = Path(folder) / JSON_NAME
    try:
        record = json.loads(path.read_text())
        if record["format"] != FORMAT:
            raise CodecError(f"{path}: format {record['format']}; this program reads format {FORMAT}")
        return NetworkConfig.model_validate(record["network"]), CodecSpec.parse(record["spec"]), dict(record["provenance"])
    except CodecError:
        raise
    except FileNotFoundError as error:
        raise CodecError(
            f"{folder}: no tokenizer there; train one (`videoar tokenizer train`) or import one (`videoar tokenizer import`)"
        ) from error
    except ValidationError as error:
        raise CodecError(f"{path}: no tokenizer description: {first_problem(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CodecError(f"{path}: no tokenizer description: {error}") from error


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Read tokenizer.safetensors. Raises CodecError for a missing or damaged file."""
    path = Path(folder) / WEIGHTS_NAME
    try:
        found: dict[str, Tensor] = safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise CodecError(f"{path}: the weights are missing; copy the folder again or train anew") from error
    except (SafetensorError, OSError) as error:
        raise CodecError(
            f"{path}: cannot read the weights ({error}); the file is damaged: copy it again or train anew"
        ) from error
    return found


def check_keys(where: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CodecError naming missing, foreign or misshapen weights."""
    missing, foreign = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or foreign:
        raise CodecError(
            f"{where}: weights do not fit the network: missing {missing[:5] or 'none'}, foreign {foreign[:5] or 'none'}"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CodecError(f"{where}: weight `{name}` has shape {found[name]}, the network takes {shape}")
