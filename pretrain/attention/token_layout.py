"""The order of tokens: text, then for each latent frame its scales from coarse to fine. Pure integers.

In:  padded text length, latent frames, the scale list of one frame.
Out: the span of each (frame, scale), and for each token which frame, scale and place it is.

    | text ... pad | t=0: s=0 s=1 ... s=K-1 | t=1: s=0 ... | ... |

Legend: L tokens, K scales.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from tokenizer.quantization.scale_schedule import Scales


@dataclass(frozen=True)
class Layout:
    """The tokens of one sample. The last frame may end after `last` scales (the sampler's first forward)."""

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
        """K + 1 offsets of the scales within a frame; the last one is the length of a frame."""
        return (0, *accumulate(rows * columns for rows, columns in self.scales))

    @property
    def frame(self) -> int:
        """Tokens of a whole frame."""
        return self.offsets[-1]

    @property
    def video(self) -> int:
        """Video tokens."""
        missing = self.frame - self.offsets[self.last] if self.last else 0
        return self.frames * self.frame - missing

    @property
    def length(self) -> int:
        """All tokens."""
        return self.text + self.video

    def scales_of(self, frame: int) -> int:
        """Return how many scales `frame` has in this layout."""
        return self.last if self.last and frame == self.frames - 1 else len(self.scales)

    def span(self, frame: int, scale: int) -> tuple[int, int]:
        """Return begin and end of (frame, scale) in the whole sequence."""
        begin = self.text + frame * self.frame
        return begin + self.offsets[scale], begin + self.offsets[scale + 1]

    def cut(self, frames: int, last: int = 0) -> Layout:
        """Return the same sequence with fewer frames, the last of which ends after `last` scales (0 = all)."""
        return replace(self, frames=frames, last=last)

    def by_token(self) -> Layout:
        """Return the same sequence with each token a step of its own, which sees what is before it: for next-token prediction."""
        assert not self.last
        return replace(self, scales=((1, 1),) * self.frame)

    def scale_of(self, device: torch.device) -> Tensor:
        """Return the scale number of each video token, int64 (video), on `device`. Kept while nothing changes."""
        return _scale_of(self, device)

    def tokens(self) -> Tokens:
        """Return what each token is, on the CPU."""
        rows, columns, scales = [], [], []
        for number, (h, w) in enumerate(self.scales):
            grid = torch.arange(h * w)
            rows.append(grid // w)
            columns.append(grid % w)
            scales.append(torch.full((h * w,), number))

        def repeated(of_one_frame: list[Tensor]) -> Tensor:
            return torch.cat(of_one_frame).repeat(self.frames)[: self.video]

        frames = torch.arange(self.frames).repeat_interleave(self.frame)[: self.video]
        text, none = torch.arange(self.text), torch.full((self.text,), -1)
        return Tokens(
            frame=torch.cat((none, frames)),
            scale=torch.cat((none, repeated(scales))),
            row=torch.cat((text, repeated(rows))),
            column=torch.cat((text, repeated(columns))),
        )


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on `device`, without making the host wait for the device."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Tokens:
    """int64 (L) each. A text token has frame and scale -1, and its own index as row and column."""

    frame: Tensor
    scale: Tensor
    row: Tensor
    column: Tensor


@functools.lru_cache(maxsize=64)
def _scale_of(layout: Layout, device: torch.device) -> Tensor:
    return sent(layout.tokens().scale[layout.text :], device)
