"""I3D on its true weights, and the Frechet distance by its definition.

The pinned logits were computed by this implementation after it had named UCF CricketShot (the I3D authors' example)
"playing cricket" with probability 0.997 on 64 frames.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenizer.evaluation.i3d import I3d, _same
from tokenizer.evaluation.metrics import frechet
from tokenizer.evaluation.pretrained import available


@pytest.mark.skipif(not available("i3d"), reason="scoring networks not fetched (`make setup` fetches them)")
def test_logits_on_true_weights() -> None:
    t, y, x = (
        torch.arange(16).view(1, 16, 1, 1, 1),
        torch.arange(64).view(1, 1, 64, 1, 1),
        torch.arange(64).view(1, 1, 1, 64, 1),
    )
    speed = torch.tensor([1, 2, 3]).view(1, 1, 1, 1, 3)
    clip = (127.5 + 100 * torch.sin((x + t * speed) / 6.0) * torch.cos(y / 9.0)).to(torch.uint8)
    net = I3d()
    logits = net.features(clip)[0]
    assert logits.topk(4).indices.tolist() == [16, 244, 277, 41]
    assert logits.norm().item() == pytest.approx(71.9986, abs=0.02)
    assert logits[16].item() == pytest.approx(10.1742, abs=0.01)
    with pytest.raises(ValueError, match="at least 9 frames"):
        net.features(clip[:, :8])


def test_padding_puts_the_odd_one_at_the_end() -> None:
    padded = _same(torch.ones(1, 1, 16, 224, 224), (7, 7, 7), (2, 2, 2))
    assert padded.shape[2:] == (21, 229, 229)
    line = padded[0, 0, 10, 100]
    assert line[:2].tolist() == [0, 0]
    assert line[-3:].tolist() == [0, 0, 0]
    assert line[2] == line[-4] == 1


def test_frechet_distance_is_that_of_gaussians() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(4000, 3)), draw.normal(size=(4000, 3)) * [1, 2, 3] + [1, 0, 0]
    assert frechet(a, b) == pytest.approx(1 + 0 + 1 + 4, rel=0.1)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    s1, s2 = np.cov(a.T), np.cov(b.T)
    values = np.linalg.eigvals(s1 @ s2).real
    exact = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s1 + s2) - 2 * np.sqrt(values).sum()
    assert frechet(a, b) == pytest.approx(exact, rel=1e-9)


def test_frechet_distance_of_few_rows_in_many_columns() -> None:
    draw = np.random.default_rng(0)
    a = draw.normal(size=(10, 400))
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + 1) == pytest.approx(400, rel=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        frechet(a[:1], a)
