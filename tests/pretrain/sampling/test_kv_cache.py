"""The cache holds what its formula says, and lets go of frames behind the window."""

from __future__ import annotations

import torch

from pretrain.model.attention import Mask, plan
from pretrain.model.config import ModelConfig
from pretrain.model.token_layout import Layout
from pretrain.sampling.kv_cache import Cache, cache_bytes, kept_frames

CONFIG = ModelConfig(layers=2, width=16, heads=2)
LAYOUT = Layout(text=3, frames=6, scales=((1, 1), (2, 2)))


def test_bytes_equal_the_formula() -> None:
    for window in (0, 2, 9):
        for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
            cache = Cache(CONFIG, LAYOUT, torch.tensor([3, 1]), window, dtype)
            assert cache.bytes == cache_bytes(CONFIG, LAYOUT, 2, window, size)
    assert cache_bytes(CONFIG, LAYOUT, 2, 2, 4) == 2 * 2 * 2 * (3 + 3 * 5) * 16 * 4
    assert [kept_frames(6, w) for w in (0, 2, 9)] == [6, 3, 6]


def test_stepwise_attention_equals_the_whole_under_the_mask() -> None:
    for window in (0, 1, 2):
        for known in (0, 1, 4):
            length = torch.tensor([3, 1])
            q, k, v = (torch.randn(2, 2, LAYOUT.length, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
            whole = plan("dense", Mask((LAYOUT,), length.unsqueeze(1), window))(0, q, k, v)
            cache = Cache(CONFIG, LAYOUT, length, window, torch.float32)
            for frame in range(known, LAYOUT.frames):
                for scale in range(2):
                    begin, end = LAYOUT.span(frame, scale)
                    if frame == known and scale == 0:
                        begin = 0
                        start = Mask((LAYOUT.cut(known + 1, last=1),), length.unsqueeze(1), window)
                        attend = cache.prefill(plan("dense", start), frame)
                    else:
                        attend = cache.step(frame, scale)
                    for layer in (0, 1):
                        part = attend(layer, q[:, :, begin:end], k[:, :, begin:end], v[:, :, begin:end])
                    assert torch.allclose(part, whole[:, :, begin:end], atol=1e-5), (window, known, frame, scale)
