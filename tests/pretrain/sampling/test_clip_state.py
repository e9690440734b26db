"""A clip's state gives the bits that were recorded before it existed, and nothing of one request reaches the next."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective import counter_rng
from pretrain.sampling.clip_state import ClipShape, ClipState
from pretrain.sampling.guidance import SampleConfig
from pretrain.sampling.sampler import Sampler
from tokenizer.quantization.codec_spec import CodecSpec

SPEC = CodecSpec(bits=16, spatial_stride=16, temporal_stride=4, digest="x")
GUIDED = SampleConfig()
PLAIN = SampleConfig(guidance=(1, 1), guidance_end=1)
OTHER = {"input_resize": "area", "rope_spatial": "aligned", "qk_norm": False, "scale_embedding": False}
LONG = "a longer caption than the others are"


def sampler(config: SampleConfig = GUIDED, **options: object) -> Sampler:
    """A small untrained model whose logits are away from chance."""
    shape = ModelConfig(layers=2, width=32, heads=4, text_length=40).model_copy(update=options)
    torch.manual_seed(0)
    model = VideoAR(shape, 16, 256)
    with torch.no_grad():
        model.head.weight.mul_(4)
    return Sampler(model, SPEC, TextTokenizer.make(shape), config)


# name: options of the model, sampling, captions, grid, frames of the prefix, window, sha256 of the bits.
RECORDED = {
    "guided": ({}, GUIDED, ["a cat"], (4, 4, 4), 0, 0, "4942ee497ea6d95b"),
    "several captions": ({}, GUIDED, ["a cat", LONG, ""], (4, 4, 4), 0, 0, "754c8ddfa4ff0205"),
    "not guided": ({}, PLAIN, ["a cat", "dog"], (4, 8, 8), 0, 0, "851578083ade0cac"),
    "no null token": ({"null_token": False}, PLAIN, ["a cat", "", "dog"], (3, 4, 4), 0, 0, "ee31eb57fb78c95b"),
    "prefix": ({}, GUIDED, ["a cat", "dog"], (4, 4, 4), 2, 0, "d726b0e0d6a83d87"),
    "window": ({}, GUIDED, ["a cat", "dog"], (6, 4, 4), 0, 2, "e70b7e09f9d087c8"),
    "window and prefix": ({}, GUIDED, ["a cat", ""], (7, 4, 6), 3, 1, "1450debeb7215f8a"),
    "likelier bit": (OTHER, SampleConfig(temperature=0), ["a cat"], (3, 4, 4), 0, 0, "8ef719bf3f301f1f"),
    "flat positions": ({"rope": "flat"}, SampleConfig(temperature=0.7), ["a cat"], (3, 8, 8), 0, 1, "0dd26132b24e4344"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_the_bits_are_those_of_the_sampler_that_made_its_tensors_at_each_step(name: str) -> None:
    """Recorded at commit cd2bf97: a cache that moved frames, block attention in the first forward, draws of each step alone."""
    options, config, captions, grid, known, window, digest = RECORDED[name]
    prefix = None
    if known:
        shape = (len(captions), known * SPEC.frame_bytes(*grid[1:]))
        prefix = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    bits = sampler(config, **options).sample(captions, grid, seed=7, prefix=prefix, window=window)
    assert hashlib.sha256(bits.numpy().tobytes()).hexdigest()[:16] == digest


def test_a_state_used_again_gives_what_a_fresh_one_gives() -> None:
    """As a recorded clip is: another request before it, of other captions, lengths, seeds and prefix."""
    ours, size = sampler(), SPEC.frame_bytes(4, 4)
    shape = ClipShape(1, 2, 32, 5, SPEC.scales(4, 4), 1, 2)
    used = ClipState(ours.model, ours.config, shape)
    for number, caption in ((1, "first, a longer text"), (2, "then"), (1, "first, a longer text")):
        text, length = ours.conditions([caption])
        prefix = torch.full((1, size), number, dtype=torch.uint8)
        seeds = counter_rng.fold(torch.arange(1), number)
        fresh = ClipState(ours.model, ours.config, shape)
        for state in (used, fresh):
            state.load(text, length, seeds, prefix)
            for frame in range(1, 5):
                assert len(list(state.frame(frame))) == len(shape.scales)
        assert torch.equal(used.packed, fresh.packed)
        expected = ours.sample([caption], (5, 4, 4), seed=number, prefix=prefix, window=2)
        assert torch.equal(used.packed[1:, 0].flatten(), expected[0, size:])


class _Operators(TorchDispatchMode):
    """Collects the names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_step_reads_nothing_back_and_takes_nothing_from_the_host() -> None:
    """What a CUDA graph could not record: values read by the host, sizes that depend on values, tensors made of Python lists."""
    ours = sampler()
    text, length = ours.conditions(["a cat", LONG])
    state = ClipState(ours.model, ours.config, ClipShape(2, 4, text.shape[1], 5, SPEC.scales(4, 4), 1, 2))
    state.load(text, length, torch.arange(2), torch.zeros(2, SPEC.frame_bytes(4, 4), dtype=torch.uint8))
    list(state.frame(1))  # positions and frequencies are made once and kept
    with _Operators() as found:
        for frame in range(1, 5):
            list(state.frame(frame))
    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "equal.default", "is_nonzero")
    assert not [name for name in found.names if any(word in name for word in forbidden)]
    assert len(found.names) > 100
