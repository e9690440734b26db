"""The guidance schedules of the paper."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pretrain.sampling.guidance import SampleConfig, guided, needed, strength


def test_ucf_schedule() -> None:
    config = SampleConfig(guidance=(1, 5), guidance_end=10)
    assert [strength(config, frame, 5, 0, 6) for frame in range(5)] == [1, 2, 3, 4, 5]
    assert [strength(config, frame, 5, 5, 6) for frame in range(5)] == [10] * 5
    assert strength(config, 4, 5, 2, 6) == pytest.approx(7)


def test_text_to_video_schedule_falls_over_frames_and_scales() -> None:
    config = SampleConfig(guidance=(5, 3), guidance_end=3)
    table = [[strength(config, frame, 9, scale, 10) for scale in range(10)] for frame in range(9)]
    assert table[0][0] == 5 and table[8][0] == 3 and table[0][9] == 3
    assert all(a >= b for row in table for a, b in pairwise(row))
    assert all(a[0] > b[0] for a, b in pairwise(table))


def test_one_frame_one_scale() -> None:
    assert strength(SampleConfig(guidance=(2, 5), guidance_end=7), 0, 1, 0, 1) == 2


def test_guided_logits() -> None:
    condition, null = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    both = torch.cat((condition, null))
    assert torch.allclose(guided(both, 1.0), condition)
    assert torch.allclose(guided(both, 0.0), null)
    assert torch.allclose(guided(both, 4.0), 4 * condition - 3 * null, atol=1e-5)


def test_whether_guidance_is_needed() -> None:
    assert needed(SampleConfig())
    assert not needed(SampleConfig(guidance=(1, 1), guidance_end=1))
