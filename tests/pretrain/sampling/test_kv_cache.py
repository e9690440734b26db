"""The cache takes the memory that its layout says, and forgets frames behind the window."""

from __future__ import annotations

import torch

from pretrain.attention.attention import Mask, bind_mask
from pretrain.attention.token_layout import Layout
from pretrain.model.config import ModelConfig
from pretrain.sampling.kv_cache import ALIGN, KVCache, aligned

CONFIG = ModelConfig(layers=2, width=16, heads=2)
LAYOUT = Layout(text=3, frames=6, scales=((1, 1), (2, 2)))


def test_bytes_equal_the_formula() -> None:
    for window, frames in ((0, 6), (2, 3), (9, 6)):
        for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
            cache = KVCache(CONFIG, LAYOUT, 2, window, dtype)
            # Keys and values, 2 layers, 2 rows, text and frames of 5 tokens, width 16.
            assert cache.room == frames and cache.data.nbytes == 2 * 2 * 2 * aligned(3 + frames * 5) * 16 * size


def test_lengths_are_rounded_up() -> None:
    assert [aligned(n) for n in (0, 1, ALIGN, ALIGN + 1)] == [0, ALIGN, ALIGN, 2 * ALIGN]


def test_stepwise_attention_equals_the_whole_under_the_mask() -> None:
    """Whatever an earlier clip left in the cache."""
    for window in (0, 1, 2):
        for known in (0, 1, 4):
            length = torch.tensor([3, 1])
            q, k, v = (torch.randn(2, 2, LAYOUT.length, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
            whole = bind_mask("dense", Mask((LAYOUT,), length.unsqueeze(1), window))(0, q, k, v)
            cache = KVCache(CONFIG, LAYOUT, 2, window, torch.float32)
            cache.data.fill_(7.0)
            cache.set_text(torch.tensor([1, 2]))
            cache.set_text(length)
            for frame in range(known, LAYOUT.frames):
                cache.begin(frame)
                for scale in range(2):
                    begin, end = LAYOUT.span(frame, scale)
                    if frame == known and scale == 0:
                        begin = 0
                        attend = cache.prefill(frame)
                    else:
                        attend = cache.step(frame, scale)
                    for layer in (0, 1):
                        part = attend(layer, q[:, :, begin:end], k[:, :, begin:end], v[:, :, begin:end])
                        expected = whole[:, :, begin:end].clone()
                        if begin == 0:  # the text of the second row is padded: nothing reads what comes of it
                            part[1, :, 1:3] = expected[1, :, 1:3] = 0
                        assert torch.allclose(part, expected, atol=1e-5), (window, known, frame, scale)
