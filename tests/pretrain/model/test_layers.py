"""Parts of a block."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch import nn

from pretrain.attention.attention import Mask, bind_mask
from pretrain.attention.token_layout import Layout
from pretrain.model.config import ModelConfig
from pretrain.model.layers import Block, Embedding, FeedForward, Linear, RMSNorm, SelfAttention, checkpointed, ffn_width
from pretrain.model.rope import positions, tables

CONFIG = ModelConfig(layers=2, width=32, heads=4)


def test_norm_formula() -> None:
    norm = RMSNorm(16)
    nn.init.uniform_(norm.weight)
    x = torch.randn(3, 16) * 5
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    assert torch.allclose(norm(x)[1], expected, atol=1e-5)
    total, normed = norm(x - 1, torch.ones_like(x))
    assert torch.allclose(total, x, atol=1e-5) and torch.allclose(normed, expected, atol=1e-5)


def test_feed_forward_is_swiglu() -> None:
    feed = FeedForward(CONFIG)
    x = torch.randn(2, 3, 32)
    gate, up = (x @ feed.gate_up.weight.t()).split(ffn_width(CONFIG), dim=-1)
    expected = (gate * gate.sigmoid() * up) @ feed.down.weight.t()
    assert torch.allclose(feed(x), expected, atol=1e-5)


def test_default_ffn_width() -> None:
    assert ffn_width(ModelConfig(width=512, heads=8)) == 1408
    assert ffn_width(ModelConfig(width=512, heads=8, ffn=1000)) == 1000


def test_initial_deviations() -> None:
    torch.manual_seed(0)
    linear = Linear(400, 500, gain=0.5, bias=True)
    assert abs(float(linear.weight.std()) - 0.5 / math.sqrt(400)) < 1e-3
    assert not linear.bias.any()
    assert abs(float(Embedding(300, 300, std=0.5).weight.std()) - 0.5) < 0.01


def test_recomputing_changes_nothing() -> None:
    torch.manual_seed(0)
    layout = Layout(text=2, frames=2, scales=((1, 1), (2, 2)))
    length = torch.tensor([2, 1])
    attend = bind_mask("blocks", Mask((layout,), length.unsqueeze(1)))
    cos, sin = tables(positions(layout, length), CONFIG)
    block = Block(CONFIG, 0)
    x = torch.randn(2, layout.length, 32)
    gradients = []
    for run in (lambda: block(x, cos, sin, attend), lambda: checkpointed(block, x, cos, sin, attend)):
        block.zero_grad()
        run().square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in block.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(block.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU torch.compile needs a C++ compiler")
def test_a_compiled_block_equals_a_plain_one_and_is_compiled_once_for_all_lengths() -> None:
    torch.manual_seed(0)
    plain = Block(CONFIG, 0)
    compiled = Block(CONFIG.model_copy(update={"compile": True}), 0)
    compiled.load_state_dict(plain.state_dict())
    counts = []
    for rows, text in ((2, 2), (3, 3), (2, 7)):
        layout = Layout(text=text, frames=2, scales=((1, 1), (2, 2)))
        length = torch.full((rows,), text)
        attend = bind_mask("blocks", Mask((layout,), length.unsqueeze(1)))
        cos, sin = tables(positions(layout, length), CONFIG)
        x = torch.randn(rows, layout.length, 32)
        results = []
        for block in (plain, compiled):
            block.zero_grad()
            out = block(x, cos, sin, attend)
            out.square().sum().backward()
            results.append([out.detach(), *(p.grad for p in block.parameters() if p.grad is not None)])
        assert len(results[0]) == 1 + len(list(plain.parameters()))
        assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(*results, strict=True))
        counts.append(sum(torch._dynamo.utils.counters["stats"].get(name, 0) for name in ("unique_graphs",)))
    assert counts[0] == counts[-1] > 0


def test_every_parameter_is_made_by_its_own_module() -> None:
    """A wrapper that freezes each module's parameters when its `__init__` returns (as zero.Init cuts them up) loses nothing."""
    taken: dict[int, torch.Tensor] = {}
    originals = {}
    kinds = [Linear, Embedding, RMSNorm, SelfAttention]
    for kind in kinds:
        originals[kind] = kind.__init__

        def wrapped(self: nn.Module, *args: object, _original: object = kind.__init__, **kwargs: object) -> None:
            _original(self, *args, **kwargs)  # type: ignore[operator]
            for parameter in self.parameters(recurse=False):
                taken[id(parameter)] = parameter.detach().clone()

        kind.__init__ = wrapped  # type: ignore[method-assign, assignment]
    try:
        from pretrain.model.transformer import VideoAR

        model = VideoAR(CONFIG, 16, 256)
    finally:
        for kind, original in originals.items():
            kind.__init__ = original  # type: ignore[method-assign, assignment]
    assert sum(p.numel() for p in model.parameters()) > 20_000
    for name, parameter in model.named_parameters():
        assert torch.equal(taken[id(parameter)], parameter), name
