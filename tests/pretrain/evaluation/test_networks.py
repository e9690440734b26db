"""FVD against published facts, and features that are kept on disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.evaluation.networks import ScoringNetworks
from tests.helpers.tools import unfetched
from tokenizer.evaluation.metrics import frechet
from tokenizer.evaluation.set_distances import kernel_distance

FRAMES, SIDE = 16, 64
needs = pytest.mark.skipif(unfetched("i3d", "lpips-vgg"), reason="scoring networks not fetched (`make setup`)")


def weizmann(shared: Path) -> list[np.ndarray]:
    """All strips, uint8 (T, 64, 64, 3)."""
    found = []
    for path in sorted((shared / "data" / "weizmann64" / "actions").glob("*/*.jpg")):
        strip = np.array(Image.open(path).convert("RGB"))
        count = strip.shape[1] // SIDE
        found.append(strip[:, : count * SIDE].reshape(SIDE, count, SIDE, 3).transpose(1, 0, 2, 3))
    return found


@needs
@pytest.mark.system
@pytest.mark.timeout(1200)
def test_fvd_of_weizmann_clips_is_as_published(shared: Path, tmp_path: Path) -> None:
    """72 against 72 clips of 16 frames: real 289, shuffled 880, frozen 1256, noise 1803 by an independent implementation.

    Which frames it took, and how strong its noise was, is not known: the order holds, and all but the noise within a fifth.
    By default every eleventh strip is taken, which raises each distance, and the published order and ratios are held;
    VIDEOAR_PROOF=1 takes all (five minutes on two cores).
    """
    whole = os.environ.get("VIDEOAR_PROOF") == "1"
    clips = weizmann(shared)[:: 1 if whole else 11]
    draw = np.random.default_rng(0)
    first, other = (np.stack([strip[part] for strip in clips]) for part in (slice(FRAMES), slice(-FRAMES, None)))
    sets = {
        "real": other,
        "shuffled": np.stack([clip[draw.permutation(FRAMES)] for clip in other]),
        "frozen": np.repeat(other[:, :1], FRAMES, axis=1),
        "noise": (other + draw.normal(0, 20, other.shape)).round().clip(0, 255).astype(np.uint8),
    }
    networks = ScoringNetworks(tmp_path)
    target = networks.videos(torch.from_numpy(first), "reference")
    assert target is not None and target.shape == (len(clips), 400)
    features = {name: networks.videos(torch.from_numpy(made), name) for name, made in sets.items()}
    fvd = {name: frechet(target, rows) for name, rows in features.items() if rows is not None}
    kvd = {name: kernel_distance(target, rows) for name, rows in features.items() if rows is not None}
    assert list(fvd.values()) == sorted(fvd.values()), fvd
    assert kvd["real"] < min(kvd["frozen"], kvd["noise"]), kvd
    published = {"real": 289.0, "shuffled": 880.0, "frozen": 1256.0}
    for name, value in published.items():
        if whole:
            assert fvd[name] == pytest.approx(value, rel=0.2)
        else:
            assert 0.5 * value / published["real"] < fvd[name] / fvd["real"] < 1.3 * value / published["real"], fvd


@needs
def test_features_are_computed_once_and_depend_on_pixels_alone(tmp_path: Path) -> None:
    clips = torch.randint(0, 256, (10, 2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    networks = ScoringNetworks(tmp_path)
    first = networks.frames(clips, "clips")
    assert first is not None and first.shape == (20, 512) and len(networks.computed) == 2  # 8 clips, then 2
    again = ScoringNetworks(tmp_path)
    found = again.frames(clips, "clips")
    assert again.computed == [] and found is not None and np.array_equal(first, found)
    changed = clips.clone()
    changed[9, 0, 0, 0, 0] ^= 1
    third = again.frames(changed, "changed")
    assert len(again.computed) == 1 and third is not None
    assert np.array_equal(third[:16], first[:16]) and not np.array_equal(third[18], first[18])


def test_without_weights_there_are_no_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOAR_CACHE", str(tmp_path / "empty"))
    networks = ScoringNetworks(tmp_path)
    clips = torch.zeros(2, 9, 32, 32, 3, dtype=torch.uint8)
    assert networks.missing == ["i3d", "lpips-vgg", "lpips-alex"]
    assert networks.videos(clips, "") is None and networks.frames(clips, "") is None and networks.lpips is None
