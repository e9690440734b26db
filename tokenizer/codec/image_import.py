"""Import of public image tokenizers (Infinity's format) as causal 3D tokenizers.

In:  FILE.pth, a dict with the 2D state dict under `vae` and perhaps its moving average under `ema`, or the state dict itself; or
     a .safetensors of it. d, base width, levels and blocks are read from the shapes.
Out: a tokenizer folder, inflated to 3D, with the public d or another one.

Inflation (VideoAR App. A): the temporally last slice of each 3D kernel takes the 2D kernel. With zero earlier slices, the
default, the network gives the image network's output on an image, and on every frame where no temporal stride acts. The paper
draws the earlier slices at random; `random` does so, from a normal distribution with the 2D kernel's own standard deviation.

Change of d (the paper uses 48 bits, public weights have 32 or 64; how it changed them is not published). Codes have length 1
whatever d is, so one bit is worth 1/sqrt(d). Scaling the encoder's last convolution by sqrt(d/d') and the decoder's first by
sqrt(d'/d) therefore keeps every public bit and the decoder's output. Growing adds encoder rows drawn with the public rows' own
statistics (the new bits carry something) and decoder columns of zero (nothing changes until training uses them). Shrinking
keeps the d' channels with the longest decoder columns, in their order.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from tokenizer import codec
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network
from tokenizer.quantization.codec_spec import CodecSpec

_OTHER_PARTS = (
    "quantizer.",
    "quantize.",
    "image_disc.",
    "video_disc.",
    "discriminator.",
    "perceptual_model.",
    "perceptual_loss.",
)
"""Parts of the public training program that are not the network; their weights are ignored."""


class ImportFailure(ValueError):
    """A file that is no public image tokenizer; the message names what is wrong."""


def import_public(
    source: Path,
    folder: Path,
    *,
    bits: int | None = None,
    ema: bool | None = None,
    older: Literal["zero", "random"] = "zero",
    temporal_stride: Literal[1, 2, 4] = 4,
    seed: int = 0,
) -> CodecSpec:
    """Read `source`, write the tokenizer folder, return its spec.

    bits: d of the result; None keeps the public one. ema: import the moving average; None does so when there is one.
    older: how earlier temporal slices are filled. Raises ImportFailure or CodecError.
    """
    state, part = read_public(source, ema)
    config = network_of(state, source, temporal_stride)
    public_bits = int(state["encoder.conv_out.conv.weight"].shape[0])
    if bits is None and public_bits % 8:
        raise ImportFailure(
            f"{source}: {public_bits} bits do not fill whole bytes; choose a number of bits divisible by 8 (--bits)"
        )
    if bits is not None and bits != public_bits:
        state = change_bits(state, bits, seed)
    wanted = config.model_copy(update={"bits": bits or public_bits})
    try:
        wanted = NetworkConfig.model_validate(wanted.model_dump())
    except ValidationError as error:
        raise ImportFailure(f"{source}: {bits or public_bits} bits make no network: {error.errors()[0]['msg']}") from error
    with torch.device("meta"):
        shapes = Network(wanted).shapes()
    try:
        weights = inflate(state, shapes, older=older, seed=seed)
    except ImportFailure as error:
        raise ImportFailure(f"{source}: {error}") from error
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"file": source.name, "sha256": sha256, "part": part, "bits": public_bits, "older_slices": older, "seed": seed}
    return codec.save(folder, wanted, weights, {"imported": origin})


def read_public(source: Path, ema: bool | None) -> tuple[dict[str, Tensor], str]:
    """Return a public file's encoder and decoder weights, and their part of it (`vae`, `ema` or `plain`). Raises ImportFailure."""
    try:
        if source.suffix == ".safetensors":
            loaded: object = safetensors.torch.load_file(source)
        else:
            loaded = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ImportFailure(f"{source}: no such file") from error
    except pickle.UnpicklingError as error:
        raise ImportFailure(f"{source}: holds more than tensors, or is no PyTorch file; it is not read") from error
    except (RuntimeError, EOFError, SafetensorError, ValueError, OSError) as error:
        raise ImportFailure(f"{source}: cannot be read ({str(error).splitlines()[0]}); download it again") from error
    if not isinstance(loaded, dict):
        raise ImportFailure(f"{source}: holds a {type(loaded).__name__}, not a state dict")
    parts = [name for name in ("ema", "vae") if isinstance(loaded.get(name), dict)]
    if ema and "ema" not in parts:
        raise ImportFailure(f"{source}: holds no moving average (`ema`); import without --ema")
    part = "plain" if not parts else "vae" if ema is False and "vae" in parts else parts[0]
    found = loaded if part == "plain" else loaded[part]
    broken = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if broken:
        raise ImportFailure(f"{source}: {_some(broken)} under `{part}` is no tensor")
    state = {name: value for name, value in found.items() if name.startswith(("encoder.", "decoder."))}
    foreign = [name for name in found if name not in state and not name.startswith(_OTHER_PARTS)]
    if foreign or not state:
        raise ImportFailure(f"{source}: not the public image tokenizer's state dict; foreign keys: {_some(foreign)}")
    return state, part


def network_of(state: Mapping[str, Tensor], source: Path, temporal_stride: Literal[1, 2, 4]) -> NetworkConfig:
    """Infer the network's shape from the weights. Raises ImportFailure naming the first missing key."""
    try:
        width = int(state["encoder.conv_in.conv.weight"].shape[0])
        bits = int(state["encoder.conv_out.conv.weight"].shape[0])
        levels = 1 + max(int(m[1]) for m in map(re.compile(r"encoder\.down\.(\d+)\.").match, state) if m)
        blocks = 1 + max(int(m[1]) for m in map(re.compile(r"encoder\.down\.0\.block\.(\d+)\.").match, state) if m)
        widths = [int(state[f"encoder.down.{i}.block.0.conv2.conv.weight"].shape[0]) for i in range(levels)]
        inputs = int(state["decoder.conv_in.conv.weight"].shape[1])
    except KeyError as error:
        raise ImportFailure(f"{source}: the state dict lacks `{error.args[0]}`") from error
    except ValueError as error:
        raise ImportFailure(f"{source}: the state dict holds no encoder levels (`encoder.down.0.block.0...`)") from error
    if inputs != bits or any(w % width for w in widths):
        raise ImportFailure(
            f"{source}: the encoder gives {bits} channels, the decoder takes {inputs}; level widths {widths} on base width {width}"
        )
    return NetworkConfig(
        bits=-(-bits // 8) * 8,
        width=width,
        multipliers=tuple(w // width for w in widths),
        blocks=blocks,
        temporal_stride=temporal_stride,
        middle_attention=any(".mid.attn_1." in name for name in state),
    )


def change_bits(state: Mapping[str, Tensor], bits: int, seed: int) -> dict[str, Tensor]:
    """Return the state dict with another d, by the rule at the head of this file. Works on 2D and 3D kernels."""
    made = dict(state)
    rows, bias = state["encoder.conv_out.conv.weight"].float(), state["encoder.conv_out.conv.bias"].float()
    columns = state["decoder.conv_in.conv.weight"].float()
    public = rows.shape[0]
    if bits > public:
        generator = torch.Generator().manual_seed(seed)
        more = bits - public
        drawn = torch.randn((more, *rows.shape[1:]), generator=generator) * rows.std()
        rows = torch.cat((rows, drawn))
        bias = torch.cat((bias, torch.zeros(more)))
        columns = torch.cat((columns, torch.zeros((columns.shape[0], more, *columns.shape[2:]))), dim=1)
    else:
        keep = columns.transpose(0, 1).flatten(1).norm(dim=1).topk(bits).indices.sort().values
        rows, bias, columns = rows[keep], bias[keep], columns[:, keep]
    shrink = (public / bits) ** 0.5
    made["encoder.conv_out.conv.weight"] = rows * shrink
    made["encoder.conv_out.conv.bias"] = bias * shrink
    made["decoder.conv_in.conv.weight"] = columns / shrink
    return made


def inflate(
    weights_2d: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    older: Literal["zero", "random"] = "zero",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the 3D state dict of the network whose weights have `shapes`. Raises ImportFailure naming keys that do not fit."""
    missing = sorted(set(shapes) - set(weights_2d))
    foreign = sorted(set(weights_2d) - set(shapes))
    if missing or foreign:
        raise ImportFailure(f"state dict does not fit the network: missing {_some(missing)}; foreign {_some(foreign)}")
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        flat = weights_2d[name].float()
        if len(shape) == 5 and flat.ndim == 4 and tuple(flat.shape) == (*shape[:2], *shape[3:]):
            full = torch.zeros(shape)
            if older == "random" and shape[2] > 1:
                full.normal_(std=float(flat.std()), generator=generator)
            full[:, :, -1] = flat
            made[name] = full
        elif tuple(flat.shape) == tuple(shape):
            made[name] = flat.clone()
        else:
            raise ImportFailure(f"state dict key `{name}`: shape {tuple(flat.shape)} does not inflate to {tuple(shape)}")
    return made


def _some(names: list[str], most: int = 8) -> str:
    """Return names for a message: the first few, and how many more there are."""
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"`{name}`" for name in names[:most]) + more
