"""The scoring networks over sets of clips, with their features kept on disk.

In:  clips uint8 (B,T,H,W,3); the weights that `python -m tokenizer.evaluation.fetch` has fetched.
Out: float64 features: I3D's logits, one row per clip; VGG16's last features, one row per frame looked at.

Features are kept in FOLDER/NETWORK-DIGEST.npy; the digest covers the pixels, their shape and the weights. They are computed and
kept a few clips at a time, so that a stopped evaluation goes on, and another evaluation on the same clips computes none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.runtime.atomic_files import committing, read_json
from cluster.runtime.progress import ProgressBar
from tokenizer.evaluation.i3d import I3d
from tokenizer.evaluation.lpips import Lpips
from tokenizer.evaluation.pretrained import RECORD, available, cache

Features = NDArray[np.float64]

TOGETHER = 8
"""Clips whose features are one file."""
LOOKED_AT = 4
"""Frames of a clip, evenly spaced, that the frame-level distance looks at: neighbours show the same."""


def digest(clips_BTHWC: Tensor) -> str:
    """Return the sha256 of clips: their shape and pixels."""
    head = hashlib.sha256(str(tuple(clips_BTHWC.shape)).encode())
    head.update(clips_BTHWC.contiguous().numpy().tobytes())
    return head.hexdigest()


@dataclass(frozen=True)
class ScoringNetworks:
    """The networks that are here. A score whose network is not is None, and `missing` says it once."""

    folder: Path
    """Where features are kept."""
    device: str = "cpu"
    computed: list[str] = field(default_factory=list)
    """Files of features that this process computed, rather than found."""

    @property
    def missing(self) -> list[str]:
        """Names of the networks whose weights were not fetched."""
        return [name for name in ("i3d", "lpips-vgg", "lpips-alex") if not available(name)]

    def videos(self, clips_BTHWC: Tensor, label: str) -> Features | None:
        """Return I3D's logits (B, 400), which FVD and KVD compare; None for clips of fewer than 9 frames."""
        if not available("i3d") or clips_BTHWC.shape[1] < 9:
            return None
        return self._kept("i3d", clips_BTHWC, lambda clips: self._i3d.features(clips), label)

    def frames(self, clips_BTHWC: Tensor, label: str) -> Features | None:
        """Return VGG16's last convolution's features, averaged over the frame, (B * LOOKED_AT, 512); None for frames under 32 pixels."""
        if not available("lpips-vgg") or min(clips_BTHWC.shape[2:4]) < 32:
            return None
        places = np.linspace(0, clips_BTHWC.shape[1] - 1, min(LOOKED_AT, clips_BTHWC.shape[1])).round().astype(int)
        return self._kept("vgg16", clips_BTHWC[:, places.tolist()], self._vgg16, label)

    @cached_property
    def lpips(self) -> Lpips | None:
        """LPIPS on AlexNet; None if its weights were not fetched."""
        return Lpips("lpips-alex").to(self.device) if available("lpips-alex") else None

    @cached_property
    def _i3d(self) -> I3d:
        return I3d().to(self.device)

    @cached_property
    def _vgg(self) -> Lpips:
        return Lpips("lpips-vgg").to(self.device)

    @torch.no_grad()
    def _vgg16(self, clips_BTHWC: Tensor) -> Tensor:
        x_NCHW = clips_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).to(self.device).float() / 127.5 - 1
        return self._vgg.features(x_NCHW)[-1].mean((2, 3)).cpu()

    def _kept(self, net: str, clips_BTHWC: Tensor, compute: Callable[[Tensor], Tensor], label: str) -> Features:
        """Return the features of clips, from disk where they are there."""
        weights = str(read_json(cache() / RECORD).get({"vgg16": "lpips-vgg"}.get(net, net)))
        parts: Sequence[Tensor] = clips_BTHWC.split(TOGETHER)
        rows = []
        with ProgressBar(f"{net} on {label}", len(clips_BTHWC), stderr=True) as progress:
            for clips in parts:
                name = hashlib.sha256(f"{weights} {digest(clips)}".encode()).hexdigest()[:32]
                path = self.folder / f"{net}-{name}.npy"
                if not path.exists():
                    with committing(path) as temporary, temporary.open("wb") as file:
                        np.save(file, compute(clips).double().numpy(), allow_pickle=False)
                    self.computed.append(path.name)
                rows.append(np.load(path, allow_pickle=False))
                progress.update(len(clips))
        return np.concatenate(rows)
