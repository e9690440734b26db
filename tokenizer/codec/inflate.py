"""Inflation: the weights of a 2D image tokenizer become those of the causal 3D network.

In:  a 2D state dict in the public naming, and the network configuration that it shall fit.
Out: a 3D state dict whose last temporal slice is the 2D kernel and whose earlier slices are zero, so that the network
     gives the image network's output on an image, and on every frame where no temporal stride acts.
Called by: tokenizer/codec/image_import.py and tests.

Source: VideoAR App. A (temporally last slice takes the 2D weights); zeros elsewhere is a choice of decisions.md, `random`
(normal, the 2D kernel's own standard deviation) the paper's wording.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor


def inflate(
    weights_2d: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    older: Literal["zero", "random"] = "zero",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the 3D state dict that fills `shapes` (name -> shape of the 3D network).

    Raises ValueError that names missing, foreign or misshapen keys.
    """
    missing = sorted(set(shapes) - set(weights_2d))
    foreign = sorted(set(weights_2d) - set(shapes))
    if missing or foreign:
        raise ValueError(f"state dict does not fit the network: missing {name_some(missing)}; foreign {name_some(foreign)}")
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
            raise ValueError(f"state dict key `{name}`: shape {tuple(flat.shape)} does not inflate to {tuple(shape)}")
    return made


def name_some(names: list[str], most: int = 8) -> str:
    """Names for a message: the first few, and how many more."""
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"`{name}`" for name in names[:most]) + more
