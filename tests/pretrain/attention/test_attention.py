"""The mask says what the paper says, and the backends agree."""

from __future__ import annotations

import itertools

import pytest
import torch

from pretrain.attention.attention import resolve
from tests.helpers.masks import MASKS


@pytest.mark.parametrize("name", MASKS)
def test_the_dense_mask_against_a_slow_loop(name: str) -> None:
    mask = MASKS[name]
    tokens: list[tuple[int, int, int, int]] = []  # document, frame, scale, text index
    for number, layout in enumerate(mask.documents):
        tokens += [(number, -1, -1, i) for i in range(layout.text)]
        for frame in range(layout.frames):
            for scale in range(layout.scales_of(frame)):
                tokens += [(number, frame, scale, -1)] * (layout.scales[scale][0] * layout.scales[scale][1])
    tokens += [(-1, -1, -1, i) for i in range(mask.padding)]
    dense = mask.dense()
    for b, q, k in itertools.product(range(2), range(len(tokens)), range(len(tokens))):
        (dq, fq, sq, iq), (dk, fk, sk, ik) = tokens[q], tokens[k]
        if dq != dk or dq < 0:
            expected = q == k
        elif fq < 0:
            expected = fk < 0 and ik <= iq
        elif fk < 0:
            expected = ik < int(mask.text_length[b, dk])
        elif fk == fq:
            expected = sk <= sq
        else:
            shown = mask.hidden is None or not bool(mask.hidden[b, dk, fk])
            expected = fk < fq and (not mask.window or fq - fk <= mask.window) and shown
        assert bool(dense[b, 0, q, k]) == expected, (b, tokens[q], tokens[k])


def test_auto_is_a_fused_backend_only_where_its_kernels_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for capability, expected in (((8, 0), "flash"), ((9, 0), "cudnn"), ((10, 0), "cudnn")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None, found=capability: found)
        assert resolve("auto", gpu, torch.bfloat16) == expected
    assert resolve("auto", gpu, torch.float32) == "blocks"
    assert resolve("auto", cpu, torch.bfloat16) == "blocks"
    assert resolve("dense", gpu, torch.bfloat16) == "dense"
