"""PatchGAN discriminator: one set of weights for videos and images.

In:  clips x_BCTHW in [-1, 1].
Out: logits (B,1,T',h,w), one per patch of space and time.

Three strided layers as in pix2pix, so a logit sees 70 x 70 pixels. The temporal kernel is 3, with stride 2 in the first two
layers; the outer frames are repeated as padding, so a one-frame clip passes through the same weights. GroupNorm replaces
batch norm: no statistics cross clips or ranks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.network.frame_norm import group_count


class PatchDiscriminator(nn.Module):
    """`width` channels in the first layer, doubled by each further strided layer up to 8 x `width`."""

    def __init__(self, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers)]
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        before = 3
        for i, after in enumerate(widths):
            self.convs.append(nn.Conv3d(before, after, (3, 4, 4), stride=(2 if i < 2 else 1, 2, 2), padding=(0, 1, 1)))
            self.norms.append(nn.Identity() if i == 0 else nn.GroupNorm(group_count(after, 32), after))
            before = after
        after = width * min(2**layers, 8)
        self.convs.append(nn.Conv3d(before, after, (3, 4, 4), padding=(0, 1, 1)))
        self.norms.append(nn.GroupNorm(group_count(after, 32), after))
        self.out = nn.Conv3d(after, 1, (1, 4, 4), padding=(0, 1, 1))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Return the logits: high for originals, low for reconstructions."""
        for conv, norm in zip(self.convs, self.norms):
            padded = torch.cat((x_BCTHW[:, :, :1], x_BCTHW, x_BCTHW[:, :, -1:]), dim=2)
            x_BCTHW = F.leaky_relu(norm(conv(padded)), 0.2)
        out: Tensor = self.out(x_BCTHW)
        return out
