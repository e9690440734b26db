"""The order of tokens: text, then for each latent frame its scales from coarse to fine. Pure integers.

In:  padded text length, latent frames, the scale list of one frame.
Out: offsets of each (frame, scale) and descriptors of each token.
Called by: pretrain.rope, pretrain.attention, pretrain.objective, pretrain.sample.

    | text ... pad | t=0: s=0 s=1 ... s=K-1 | t=1: s=0 ... | ... |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from tokenizer.quantization.scale_schedule import Scales


@dataclass(frozen=True)
class Layout:
    """One sample's tokens. The last frame may be cut after `last` scales (the sampler's first forward)."""

    text: int
    """Text tokens, padding included."""
    frames: int
    """Latent frames."""
    scales: Scales
    """Rows and columns of each scale of one frame."""
    last: int = 0
    """Scales of the last frame; 0 = all."""

    def __post_init__(self) -> None:
        assert self.text >= 0 and self.frames >= 0 and self.scales and 0 <= self.last <= len(self.scales)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """K + 1 offsets of the scales within a frame; the last one is the frame's length."""
        return (0, *accumulate(rows * columns for rows, columns in self.scales))

    @property
    def frame(self) -> int:
        """Tokens of a whole frame."""
        return self.offsets[-1]

    @property
    def video(self) -> int:
        """Video tokens."""
        cut = self.frame - self.offsets[self.last] if self.last else 0
        return self.frames * self.frame - cut

    @property
    def length(self) -> int:
        """All tokens."""
        return self.text + self.video

    def scales_of(self, frame: int) -> int:
        """Scales that `frame` has in this layout."""
        return self.last if self.last and frame == self.frames - 1 else len(self.scales)

    def span(self, frame: int, scale: int) -> tuple[int, int]:
        """Begin and end of (frame, scale) in the whole sequence."""
        begin = self.text + frame * self.frame
        return begin + self.offsets[scale], begin + self.offsets[scale + 1]

    def tokens(self) -> Tokens:
        """Descriptors of each token, on the CPU."""
        rows, columns, scale = [], [], []
        for index, (h, w) in enumerate(self.scales):
            grid = torch.arange(h * w)
            rows.append(grid // w)
            columns.append(grid % w)
            scale.append(torch.full((h * w,), index))
        text = torch.arange(self.text)
        none = torch.full((self.text,), -1)

        def whole(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).repeat(self.frames)[: self.video]

        frame = torch.arange(self.frames).repeat_interleave(self.frame)[: self.video]
        return Tokens(
            frame=torch.cat((none, frame)),
            scale=torch.cat((none, whole(scale))),
            row=torch.cat((text, whole(rows))),
            column=torch.cat((text, whole(columns))),
        )

    def cut(self, frames: int, last: int = 0) -> Layout:
        """The same sequence with fewer frames, the last of them cut after `last` scales (0 = whole)."""
        return replace(self, frames=frames, last=last)


@dataclass(frozen=True)
class Tokens:
    """int64 (L) each; text tokens have frame and scale -1, and their own index as row and column."""

    frame: Tensor
    scale: Tensor
    row: Tensor
    column: Tensor
