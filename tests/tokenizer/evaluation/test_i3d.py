"""I3D on its true weights.

The pinned logits were computed by this implementation after it had named UCF CricketShot (the I3D authors' example)
"playing cricket" with probability 0.997 on 64 frames.
"""

from __future__ import annotations

import pytest
import torch

from tests.helpers.tools import unfetched
from tokenizer.evaluation.i3d import I3d, pad_same


@pytest.mark.skipif(unfetched("i3d"), reason="scoring networks not fetched (`make setup` fetches them)")
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
    padded = pad_same(torch.ones(1, 1, 16, 224, 224), (7, 7, 7), (2, 2, 2))
    assert padded.shape[2:] == (21, 229, 229)
    line = padded[0, 0, 10, 100]
    assert line[:2].tolist() == [0, 0]
    assert line[-3:].tolist() == [0, 0, 0]
    assert line[2] == line[-4] == 1
