"""The objective that training minimises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cluster.config import load
from cluster.runtime.errors import exit_code
from cluster.runtime.job_protocol import USAGE
from pretrain.attention.attention import bind_mask
from pretrain.data.batch import Batch
from pretrain.loop.job import build
from pretrain.model.bit_loss import token_weights
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective, ObjectiveError
from tokenizer.quantization.codec_spec import CodecSpec

SPEC = CodecSpec(bits=16, spatial_stride=16, temporal_stride=4, digest="x")
MODEL = ModelConfig(layers=2, width=32, heads=4, text_length=8, max_scales=4)
CLEAN = ObjectiveConfig(flip_max=0, flip_delta=0, condition_drop=0)


def _objective(config: ObjectiveConfig = CLEAN, model: ModelConfig = MODEL) -> Objective:
    torch.manual_seed(0)
    return Objective(VideoAR(model, 16, 256), config, SPEC)


def _batch(count: int = 4, grid: tuple[int, int, int] = (3, 4, 4)) -> Batch:
    generator = torch.Generator().manual_seed(3)
    size = grid[0] * SPEC.frame_bytes(*grid[1:])
    return Batch(
        bits=torch.randint(0, 256, (count, size), dtype=torch.uint8, generator=generator),
        text=torch.randint(0, 256, (count, 5), generator=generator),
        text_length=torch.tensor([5, 3, 0, 1])[:count],
        weight=torch.full((count,), 1 / count),
        seeds=torch.arange(count) + 7,
        grid=grid,
        ids=tuple(map(str, range(count))),
    )


def _slice(batch: Batch, part: slice) -> Batch:
    names = ("bits", "text", "text_length", "weight", "seeds", "ids")
    return replace(batch, **{name: getattr(batch, name)[part] for name in names})


def test_loss_is_the_weighted_bit_cross_entropy() -> None:
    objective, batch = _objective(), _batch()
    out = objective(batch, 0, 0.0)
    ready = objective.prepare(batch, 0, 0.0)
    model = objective.model
    x = model.embed(ready.text, ready.features, ready.scale, True)
    hidden = model(x, model.positions(ready.layout, ready.text_length), bind_mask("dense", ready.mask))
    logits = model.head(hidden[:, ready.layout.text :])[0]
    tokens = F.binary_cross_entropy_with_logits(logits, ready.labels.float(), reduction="none").mean(-1)
    expected = (tokens * token_weights(ready.layout, "sqrt-area")).sum(1).mean()
    assert torch.allclose(out["loss"], expected, atol=1e-5)
    assert out["scale_loss"].shape == (4,) and out["scale_accuracy"].shape == (4,) and out["frame_loss"].shape == (3,)
    assert float(out["frame_loss"].mean()) == pytest.approx(float(out["loss"]), rel=1e-5)
    by_scale = tokens.view(4, 3, 30)[:, :, 5:14].mean()
    assert float(out["scale_loss"][2]) == pytest.approx(float(by_scale), rel=1e-5)
    assert out["loss"].requires_grad and not any(out[k].requires_grad for k in out if k != "loss")


@pytest.mark.parametrize("config", [CLEAN, ObjectiveConfig(flip_max=0.3, condition_drop=0.5)])
def test_micro_batches_and_ranks_add_up(config: ObjectiveConfig) -> None:
    """The sum over any cut of the global batch equals the whole: loss, parts and gradients."""
    batch = _batch()
    whole = _objective(config)
    expected = whole(batch, 2, 0.4)
    expected["loss"].backward()
    cut = _objective(config)
    outs = []
    for part in (slice(0, 1), slice(1, 4)):
        out = cut(_slice(batch, part), 2, 0.4)
        out["loss"].backward()
        outs.append(out)
    for name, value in expected.items():
        assert torch.allclose(sum(out[name] for out in outs), value, atol=1e-5), name
    for (name, a), b in zip(whole.named_parameters(), cut.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def test_stored_bits_are_the_labels_without_flips() -> None:
    batch = _batch()
    plain = _objective().prepare(batch, 0, 0.0)
    bits = ((batch.bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1).bool().view(4, 90, 16)
    assert torch.equal(plain.labels, bits)
    flipped = _objective(ObjectiveConfig(flip_max=0.3)).prepare(batch, 0, 0.0)
    assert not torch.equal(flipped.labels, bits) and not torch.equal(flipped.features, plain.features)
    kept = _objective(ObjectiveConfig(flip_max=0.3, requantise=False)).prepare(batch, 0, 0.0)
    assert torch.equal(kept.labels, bits) and not torch.equal(kept.features, plain.features)


def test_condition_drop_takes_the_null_token() -> None:
    batch = replace(_batch(), seeds=torch.arange(4))
    ready = _objective(ObjectiveConfig(condition_drop=0.99)).prepare(batch, 0, 0.0)
    assert ready.text[:, 0].tolist() == [256] * 4 and ready.text_length.tolist() == [1] * 4
    ready = _objective().prepare(batch, 0, 0.0)
    # Only the sample without a caption is unconditional.
    assert ready.text[:, 0].tolist() == [*batch.text[:2, 0].tolist(), 256, int(batch.text[3, 0])]
    assert ready.text_length.tolist() == [5, 3, 1, 1]
    seeds = torch.arange(2000)
    many = replace(_slice(batch, slice(0, 1)), seeds=seeds, text=batch.text[:1].expand(2000, -1), text_length=seeds * 0 + 5)
    dropped = _objective(ObjectiveConfig(condition_drop=0.1))._condition(many)[0][:, 0] == 256
    assert abs(float(dropped.float().mean()) - 0.1) < 0.03


def test_padding_of_the_text_changes_nothing() -> None:
    objective, batch = _objective(), _batch()
    longer = replace(batch, text=torch.cat((batch.text, torch.full((4, 3), 9)), dim=1))
    assert torch.allclose(objective(batch, 0, 0.0)["loss"], objective(longer, 0, 0.0)["loss"], atol=1e-6)
    none = replace(batch, text=batch.text[:, :0], text_length=torch.zeros(4, dtype=torch.int64))
    assert objective(none, 0, 0.0)["loss"].isfinite()


def test_frame_mask_and_window_act() -> None:
    objective, batch = _objective(), _batch()
    base = objective(batch, 0, 0.0)["loss"]
    assert not torch.allclose(objective(batch, 1, 0.0)["loss"], base, atol=1e-7)
    assert not torch.allclose(objective(batch, 0, 0.9)["loss"], base, atol=1e-7)
    mask = objective.prepare(batch, 0, 0.5).mask
    assert mask.hidden is not None and mask.hidden.shape == (4, 1, 3)
    alone = objective.prepare(_slice(batch, slice(2, 3)), 0, 0.5).mask
    assert alone.hidden is not None and torch.equal(alone.hidden[0], mask.hidden[2])


def test_an_image_is_a_video_of_one_frame() -> None:
    out = _objective()(_batch(grid=(1, 4, 4)), 0, 0.0)
    assert out["frame_loss"].shape == (1,) and out["loss"].isfinite()


def test_activation_checkpointing_changes_nothing() -> None:
    batch, gradients, kept = _batch(), {}, {}
    for policy in ("none", "selective", "full"):
        objective = _objective(ObjectiveConfig())
        objective.model.activation_checkpointing, objective.model.selective = policy == "full", policy == "selective"
        storages: dict[int, int] = {}

        def keep(x: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = objective(batch, 2, 0.2)["loss"]
        loss.backward()
        gradients[policy] = [p.grad for p in objective.parameters()]
        kept[policy] = sum(storages.values())
    for policy in ("selective", "full"):
        for a, b in zip(gradients["none"], gradients[policy], strict=True):
            assert a is not None and b is not None and torch.equal(a, b)
    assert kept["full"] < kept["selective"] < 0.8 * kept["none"], kept


def test_features_replace_the_stand_in() -> None:
    batch = _batch()
    features = torch.randn(4, 3, 16, 4, 4, dtype=torch.bfloat16)
    objective = _objective(ObjectiveConfig(flip_max=0.3))
    with_features = objective.prepare(replace(batch, features=features), 0, 0.0)
    without = objective.prepare(batch, 0, 0.0)
    assert not torch.equal(with_features.labels, without.labels)


def test_bad_input_is_named() -> None:
    with pytest.raises(ObjectiveError, match="16 bits per token, the tokenizer 48"):
        Objective(VideoAR(MODEL, 16, 256), CLEAN, replace(SPEC, bits=48))
    with pytest.raises(ObjectiveError, match="null_token"):
        _objective(ObjectiveConfig(), MODEL.model_copy(update={"null_token": False}))
    with pytest.raises(ObjectiveError, match=r"180 bytes per sample: grid \(1, 4, 4\) takes 60"):
        _objective()(replace(_batch(), grid=(1, 4, 4)), 0, 0.0)
    with pytest.raises(ObjectiveError, match=r"6 scales, model\.max_scales is 4"):
        _objective()(_batch(grid=(1, 8, 8)), 0, 0.0)


def test_next_token_prediction_feeds_the_token_before_and_sees_nothing_later() -> None:
    objective, batch = _objective(model=MODEL.model_copy(update={"order": "tokens"})), _batch()
    ready = objective.prepare(batch, 0, 0.0)
    assert torch.equal(ready.features[:, 1:] > 0, ready.labels[:, :-1]) and not ready.features[:, 0].any()
    assert torch.allclose(ready.features[:, 1:].square().sum(-1), torch.ones(()))
    allowed = ready.mask.dense()[0, 0, 5:, 5:]
    assert torch.equal(allowed, torch.ones(90, 90, dtype=torch.bool).tril())
    out = objective(batch, 0, 0.0)
    out["loss"].backward()
    assert out["scale_loss"].shape == (4,) and out["frame_loss"].shape == (3,)
    with pytest.raises(ObjectiveError, match="order=tokens has nothing to correct: set"):
        _objective(ObjectiveConfig(), MODEL.model_copy(update={"order": "tokens"}))(batch, 0, 0.0)


@pytest.mark.parametrize("previous", ["first_scale", "every_scale"])
def test_what_a_frame_is_fed_of_the_finest_bits_of_the_one_before(previous: str) -> None:
    """Its first scale is one position, between the four middle ones: of a corner's last bits nothing later hears unless every scale does."""
    objective, batch = _objective(model=MODEL.model_copy(update={"previous_frame": previous})), _batch()
    other = batch.bits.clone()
    other[:, 28] ^= 255  # the corner of frame 0's 4 x 4 scale, which 14 coarser positions of two bytes precede
    fed = objective.prepare(batch, 0, 0.0).features
    changed = (objective.prepare(replace(batch, bits=other), 0, 0.0).features != fed).any(dim=2)
    if previous == "first_scale":
        assert not changed.any()
    else:
        # The corner of frame 1's 4 x 4 scale; whether coarser scales see it depends on how they are resized.
        assert changed[:, 30 + 14].all() and not changed[:, :30].any() and not changed[:, 60:].any()
    objective(batch, 0, 0.0)["loss"].backward()
    assert objective.model.word.weight.grad is not None


def test_a_few_steps_learn_random_bits() -> None:
    objective, batch = _objective(), _batch()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        out = objective(batch, 0, 0.0)
        out["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out["loss"]))
    assert losses[0] > 0.65 and losses[-1] < 0.6


def test_a_stage_that_cannot_be_trained_on_ends_the_start_as_a_wrong_configuration(tmp_path: Path) -> None:
    """Not the step, maybe days later, that enters the stage; and not with restarts, which would fail the same way."""
    path = tmp_path / "run.yaml"
    stages = "[{name: a, steps: 1, mix: [{bucket: f009x64x64, batch: 1}]}, {name: b, steps: 1, mix: [{bucket: f009x64x64, batch: 1}], FLIPS}]"
    path.write_text(
        "model: {layers: 1, width: 32, heads: 4, text_length: 8, order: tokens}\n"
        f"objective: {{flip_max: 0, flip_delta: 0}}\ncurriculum: {{stages: {stages}}}\n".replace("FLIPS", "flip_max: 0.1")
    )
    config = load(path)
    text = TextTokenizer.make(config.get(ModelConfig))
    with pytest.raises(ObjectiveError, match="order=tokens has nothing to correct") as found:
        build(config, SPEC, text)
    assert exit_code(found.value) == USAGE
    path.write_text(path.read_text().replace("flip_max: 0.1", "flip_max: 0"))
    build(load(path), SPEC, text)
