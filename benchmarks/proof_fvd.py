"""The scale of our FVD on known sets: 72 clips of 16 frames of Weizmann's strips against other clips of the same strips.

    python benchmarks/proof_fvd.py

Needs the shared folder (VIDEOAR_SHARED, or ../shared) with data/weizmann64, and the scoring networks. About 10 minutes on 2 cores.
An independent implementation (TF-Hub's I3D in its JAX port) measured on such clips: real 289, shuffled 880, frozen 1256, noise
1803. Which frames it took, and how strong its noise was, is not known, so this holds the order, and all but the noise (here
Gaussian, sigma 20 of 255) within a fifth.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from proof_clips import strips

from tokenizer.evaluation.i3d import I3d
from tokenizer.evaluation.metrics import frechet

FRAMES = 16
KNOWN = {"real": 289.0, "shuffled": 880.0, "frozen": 1256.0, "noise": 1803.0}


def main() -> int:
    clips = strips(held=True) + strips(held=False)
    draw = np.random.default_rng(0)
    first = np.stack([strip[:FRAMES] for strip in clips])
    other = np.stack([strip[-FRAMES:] for strip in clips])
    sets = {
        "real": other,
        "shuffled": np.stack([clip[draw.permutation(FRAMES)] for clip in other]),
        "frozen": np.repeat(other[:, :1], FRAMES, axis=1),
        "noise": (other + draw.normal(0, 20, other.shape)).round().clip(0, 255).astype(np.uint8),
    }
    net = I3d()
    reference = net.features(torch.from_numpy(first)).double().numpy()
    found = {}
    for name, made in sets.items():
        found[name] = frechet(reference, net.features(torch.from_numpy(made)).double().numpy())
        print(f"{name:9} {found[name]:7.0f}   known {KNOWN[name]:5.0f}", flush=True)
    rising = list(found.values()) == sorted(found.values())
    near = all(abs(found[name] / KNOWN[name] - 1) < 0.2 for name in KNOWN if name != "noise")
    print(json.dumps({"name": "fvd", "unit": "Frechet distance", **found, "known": KNOWN, "order": rising, "near": near}))
    return 0 if rising and near else 1


if __name__ == "__main__":
    sys.exit(main())
