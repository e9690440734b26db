"""The sampler agrees with the training forward, and makes what was asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cluster.runtime.progress import ProgressBar
from pretrain.attention.attention import bind_mask
from pretrain.data.batch import Batch
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextError, TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from pretrain.sampling import guidance
from pretrain.sampling.guidance import SampleConfig
from pretrain.sampling.sampler import SampleError, Sampler
from tokenizer.quantization.bit_packing import pack
from tokenizer.quantization.codec_spec import CodecSpec

SPEC = CodecSpec(bits=16, spatial_stride=16, temporal_stride=4, digest="x")
CONFIG = ModelConfig(layers=2, width=32, heads=4, text_length=8)
TEXT = TextTokenizer.make(CONFIG)
PLAIN = SampleConfig(guidance=(1, 1), guidance_end=1)
GRID = (4, 4, 4)
CAPTIONS = ["a cat", "dog", ""]


def _model(config: ModelConfig = CONFIG) -> VideoAR:
    torch.manual_seed(0)
    model = VideoAR(config, 16, TEXT.vocabulary)
    with torch.no_grad():
        model.head.weight.mul_(4)  # logits away from chance, so that a difference would show
    return model


def _teacher_forced(model: VideoAR, bits: torch.Tensor, captions: list[str], window: int) -> torch.Tensor:
    """Logits (B, N, d) of the training forward on these bits."""
    objective = Objective(model, ObjectiveConfig(flip_max=0, flip_delta=0, condition_drop=0), SPEC)
    text, length = TEXT.batch(captions)
    count = len(captions)
    batch = Batch(bits, text, length, torch.ones(count), torch.arange(count), GRID, ("",) * count)
    ready = objective.prepare(batch, window, 0.0)
    attend = bind_mask("dense", ready.mask)
    x = model.embed(ready.text, ready.features, ready.scale, True)
    hidden = model(x, model.positions(ready.layout, ready.text_length), attend)
    return model.head(hidden[:, ready.layout.text :])[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rope": "flat"},
        {"rope_spatial": "aligned", "input_resize": "area"},
        {"order": "tokens"},
        {"previous_frame": "every_scale"},
    ],
    ids=["plain", "flat", "aligned", "tokens", "every scale"],
)
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("known", [0, 1, 3])
@torch.no_grad()
def test_cached_logits_equal_teacher_forced_ones(options: dict[str, object], window: int, known: int) -> None:
    """At every frame and scale, with captions of different lengths, a window and a prefix."""
    model = _model(CONFIG.model_copy(update=options))
    size = SPEC.frame_bytes(*GRID[1:])
    source = Sampler(model, SPEC, TEXT, PLAIN).sample(CAPTIONS, GRID, seed=9)
    prefix = source[:, : known * size] if known else None
    made = list(Sampler(model, SPEC, TEXT, PLAIN).steps(CAPTIONS, GRID, prefix=prefix, seed=1, window=window))
    assert [(s.frame, s.scale) for s in made] == [(f, k) for f in range(known, 4) for k in range(4)]
    bits = [pack([s.bits for s in made if s.frame == f]) for f in range(known, 4)]
    whole = torch.cat(([prefix] if prefix is not None else []) + bits, dim=1)
    expected = _teacher_forced(model, whole, CAPTIONS, window)
    found = torch.cat([s.logits for s in made], dim=1)
    assert torch.allclose(found, expected[:, known * 30 :], atol=1e-4)


@torch.no_grad()
def test_guided_logits_join_condition_and_null() -> None:
    model = _model()
    config = SampleConfig(guidance=(2, 3), guidance_end=6)
    made = list(Sampler(model, SPEC, TEXT, config).steps(["a cat"], GRID, seed=1))
    bits = torch.cat([pack([s.bits for s in made if s.frame == f]) for f in range(4)], dim=1)
    condition, null = (_teacher_forced(model, bits, [caption], 0) for caption in ("a cat", ""))
    at = 0
    for step in made:
        start = 2 + step.frame / 3
        strength = start + (6 - start) * step.scale / 3
        size = step.logits.shape[1]
        expected = null[:, at : at + size] + strength * (condition - null)[:, at : at + size]
        assert torch.allclose(step.logits, expected, atol=1e-3)
        at += size


@pytest.mark.parametrize(("frames", "known"), [(5, 0), (3, 2), (1, 0)])
def test_forwards_are_frames_times_scales(frames: int, known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = _model(), []
    plain = VideoAR.forward
    monkeypatch.setattr(VideoAR, "forward", lambda *args: (calls.append(1), plain(*args))[1])
    size = SPEC.frame_bytes(8, 8)
    prefix = torch.zeros(1, known * size, dtype=torch.uint8) if known else None
    out = Sampler(model, SPEC, TEXT, SampleConfig()).sample(["x"], (frames, 8, 8), prefix=prefix, seed=0)
    assert out.shape == (1, frames * size)
    assert len(calls) == (frames - known) * 6  # 30 for a clip of 5 latent frames, as the paper has it


def test_a_model_that_predicts_token_by_token_takes_a_forward_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = _model(CONFIG.model_copy(update={"order": "tokens"})), []
    plain = VideoAR.forward
    monkeypatch.setattr(VideoAR, "forward", lambda *args: (calls.append(1), plain(*args))[1])
    ours = Sampler(model, SPEC, TEXT, SampleConfig())
    with ProgressBar("sampling", 2 * 30, enabled=False) as progress:
        whole = torch.cat(list(ours.frames(CAPTIONS, (2, 4, 4), seed=5, progress=progress)), dim=1)
        assert progress.done == len(calls) == 2 * 30
    alone = ours.sample(CAPTIONS[:1], (2, 4, 4), seed=5)
    assert torch.equal(alone, whole[:1])


def test_a_sample_depends_on_seed_and_number_only() -> None:
    model = _model()
    together = Sampler(model, SPEC, TEXT, SampleConfig()).sample(CAPTIONS, GRID, seed=5)
    assert torch.equal(Sampler(model, SPEC, TEXT, SampleConfig()).sample(CAPTIONS, GRID, seed=5), together)
    assert not torch.equal(Sampler(model, SPEC, TEXT, SampleConfig()).sample(CAPTIONS, GRID, seed=6), together)
    alone = Sampler(model, SPEC, TEXT, SampleConfig()).sample(CAPTIONS[:1], GRID, seed=5)
    assert torch.equal(alone, together[:1])


def test_temperature_zero_takes_the_likelier_bit() -> None:
    model = _model()
    config = PLAIN.model_copy(update={"temperature": 0.0})
    made = list(Sampler(model, SPEC, TEXT, config).steps(["x"], GRID, seed=0))
    assert all(torch.equal(s.bits.flatten(1, 2), s.logits > 0) for s in made)
    again = list(Sampler(model, SPEC, TEXT, config).steps(["x"], GRID, seed=1))
    assert all(torch.equal(a.bits, b.bits) for a, b in zip(made, again, strict=True))


@pytest.mark.parametrize("order", ["scales", "tokens"])
def test_the_last_scale_can_have_a_temperature_of_its_own(order: str) -> None:
    """1 at the first scale and 0 at the last: the last takes the likelier bits, the others are drawn as without it, cooler by scale."""
    model = _model(CONFIG.model_copy(update={"order": order}))
    warm = list(Sampler(model, SPEC, TEXT, PLAIN).steps(["x"], (1, 4, 4), seed=0))
    cooled = PLAIN.model_copy(update={"temperature_end": 0.0})
    made = list(Sampler(model, SPEC, TEXT, cooled).steps(["x"], (1, 4, 4), seed=0))
    assert torch.equal(made[0].bits, warm[0].bits)
    assert torch.equal(made[-1].bits.flatten(1, 2), made[-1].logits > 0)
    assert not torch.equal(warm[-1].bits.flatten(1, 2), warm[-1].logits > 0)
    same = PLAIN.model_copy(update={"temperature_end": PLAIN.temperature})
    assert all(
        torch.equal(one.bits, other.bits)
        for one, other in zip(warm, Sampler(model, SPEC, TEXT, same).steps(["x"], (1, 4, 4), seed=0), strict=True)
    )


def test_temperatures_are_linear_over_the_scales() -> None:
    config = SampleConfig(temperature=1.0, temperature_end=0.5)
    assert [guidance.temperature(config, scale, 6) for scale in range(6)] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    assert guidance.temperature(config, 0, 1) == 1.0
    assert guidance.temperature(SampleConfig(temperature=0.7), 5, 6) == 0.7


def test_the_prefix_is_kept() -> None:
    model, size = _model(), SPEC.frame_bytes(4, 4)
    prefix = torch.randint(0, 256, (1, 2 * size), dtype=torch.uint8)
    out = Sampler(model, SPEC, TEXT, SampleConfig()).sample(["x"], GRID, prefix=prefix, seed=0)
    assert torch.equal(out[:, : 2 * size], prefix)


def test_frames_are_those_of_the_sample_and_captions_count_from_the_first() -> None:
    ours = Sampler(_model(), SPEC, TEXT, SampleConfig())
    whole = ours.sample(CAPTIONS, GRID, seed=3, window=1)
    with ProgressBar("sampling", 16, enabled=False) as progress:
        frames = list(ours.frames(CAPTIONS, GRID, seed=3, window=1, progress=progress))
        assert progress.done == 16
    assert torch.equal(torch.cat(frames, dim=1), whole)
    assert torch.equal(torch.cat(list(ours.frames(CAPTIONS[1:], GRID, seed=3, first=1, window=1)), dim=1), whole[1:])
    with pytest.raises(SampleError, match="no caption"):
        ours.frames([], GRID, seed=0)  # at once, not when the first frame is taken


def test_captions_of_different_lengths_make_clips_of_one_shape() -> None:
    config = CONFIG.model_copy(update={"text_length": 40})
    ours = Sampler(_model(config), SPEC, TextTokenizer.make(config), SampleConfig())
    widths = [ours.conditions([caption])[0].shape[1] for caption in ("", "a", "a" * 32, "a" * 33, "a" * 40)]
    assert widths == [32, 32, 32, 40, 40]
    text, length = ours.conditions(["abc", ""])
    assert length.tolist() == [3, 1, 1, 1] and text[0, :4].tolist() == [97, 98, 99, 0]


def test_bad_requests_are_named() -> None:
    model, size = _model(), SPEC.frame_bytes(4, 4)
    with pytest.raises(TextError, match="text_length 8"):
        Sampler(model, SPEC, TEXT, PLAIN).sample(["far too long a caption"], GRID, seed=0)
    with pytest.raises(SampleError, match="no caption"):
        Sampler(model, SPEC, TEXT, PLAIN).sample([], GRID, seed=0)
    with pytest.raises(SampleError, match="ask for more frames"):
        Sampler(model, SPEC, TEXT, PLAIN).sample(["x"], GRID, prefix=torch.zeros(1, 4 * size, dtype=torch.uint8), seed=0)
    with pytest.raises(SampleError, match=r"n \* 60"):
        Sampler(model, SPEC, TEXT, PLAIN).sample(["x"], GRID, prefix=torch.zeros(1, 7, dtype=torch.uint8), seed=0)
    bare = _model(CONFIG.model_copy(update={"null_token": False}))
    with pytest.raises(SampleError, match="null token"):
        Sampler(bare, SPEC, TEXT, SampleConfig()).sample(["x"], GRID, seed=0)
    assert Sampler(bare, SPEC, TEXT, PLAIN).sample(["x"], GRID, seed=0).shape == (1, 4 * size)
    with pytest.raises(SampleError, match="max_scales"):
        small = _model(CONFIG.model_copy(update={"max_scales": 3}))
        Sampler(small, SPEC, TEXT, PLAIN).sample(["x"], GRID, seed=0)
    with pytest.raises(ValueError, match="ratio over 8:1"):
        Sampler(model, replace(SPEC), TEXT, PLAIN).sample(["x"], (1, 1, 20), seed=0)
