"""The attention mask as few calls of causal attention: integers made from the layout, no tensor of L x L.

A `VarlenPlan` is an order of the tokens, and index tensors on the device for the calls of flash_attention.py.

Legend: B rows, L tokens of a row, N = B x L tokens, G documents, T latent frames.

    part       queries                          keys                                     mask
    runs       text and its frames in sequence  the same tokens                          lower triangle
    frames     one latent frame each            text, earlier frames, the frame's own    lower triangle, aligned at the end
    own scale  the tokens of a scale            the later tokens of the same scale       strict upper triangle

So each token is a query of one call, and the third part, whose keys no other has, is merged into that. Frames that later ones do
not see, and those from which the window has begun to move, are computed one by one over gathered keys; all others, and text, are in
runs. planner.py makes plans.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

TILE = 64
"""Queries or keys of a tile of the own-scale kernels."""
LONG = 4096
"""Runs of at least this many tokens are calls of their own where the backend has a kernel for one long sequence."""
LONG_MULTIPLE = 128
"""Long runs are filled up to a multiple of this with a row's padding, as far as there is any: cuDNN plans each length anew (0.1 s)."""


@dataclass(frozen=True)
class Segments:
    """The sequences of a call, one after the other."""

    begins: Tensor
    """int32 (S + 1): where each of S sequences begins, and the total."""
    longest: int
    """Tokens of the longest sequence."""


@dataclass(frozen=True)
class Call:
    """Causal attention over consecutive tokens of the order."""

    begin: int
    end: int
    segments: Segments | None
    """None: one sequence."""


@dataclass(frozen=True)
class Frames:
    """Frames computed one by one over gathered keys; their queries are the last tokens of the order."""

    begin: int
    q_segments: Segments
    keys: Tensor
    """int32: the token of each gathered key."""
    k_segments: Segments
    shares: tuple[tuple[Tensor, Tensor], ...]
    """int32 pairs (places among the gathered keys, their tokens); no token is twice in one pair, and all pairs hold all keys."""


@dataclass(frozen=True)
class VarlenPlan:
    """Attention of N tokens, which stand in the plan's order."""

    order: Tensor | None
    """int32 (N): which token stands at each place; None if all stand where they were."""
    place: Tensor | None
    """int32 (N): where each token stands."""
    calls: tuple[Call, ...]
    frames: Frames | None
    tiles: Tensor
    """int32 (tiles, 3): first token of a tile of TILE tokens of a scale, begin and end of the scale. Scales of one token have none."""
    nbytes: int
    """Bytes of all index tensors together, which are views of one."""
