"""The transformer: causality end to end, recipes, packing, ablation switches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.config import load
from pretrain.attention.attention import Mask, bind_mask
from pretrain.attention.token_layout import Layout
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR

CONFIG = ModelConfig(layers=2, width=32, heads=4, max_scales=4)
LAYOUT = Layout(text=3, frames=3, scales=((1, 1), (2, 2), (3, 2)))


def _model(config: ModelConfig = CONFIG) -> VideoAR:
    torch.manual_seed(0)
    return VideoAR(config, 8, 256)


def _inputs(layout: Layout, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, 256, (batch, layout.text), generator=generator)
    features = torch.randn(batch, layout.video, 8, generator=generator)
    return text, features, layout.tokens().scale[layout.text :]


@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("hide", [False, True])
def test_causality_by_gradients(window: int, hide: bool) -> None:
    """No logit of (frame, scale) depends on an input that comes later, is out of sight through every path, or is hidden.

    With one layer, sight is the mask itself: checked for each (frame, scale) pair. With two, it is the mask's square.
    """
    hidden = torch.tensor([[[False, True, False]]]) if hide else None
    for layers in (1, 2):
        model = _model(CONFIG.model_copy(update={"layers": layers}))
        length = torch.tensor([3])
        mask = Mask((LAYOUT,), length.unsqueeze(1), window, hidden)
        sight = mask.dense()[0, 0].float()
        reach = (torch.matrix_power(sight, layers) > 0)[LAYOUT.text :, LAYOUT.text :]
        text, features, scale = _inputs(LAYOUT)
        features.requires_grad_()
        hidden_states = model(
            model.embed(text, features, scale, True), model.positions(LAYOUT, length), bind_mask("blocks", mask)
        )
        logits = model.head(hidden_states[:, LAYOUT.text :])[0]
        for frame in range(LAYOUT.frames):
            for k in range(len(LAYOUT.scales)):
                begin, end = (at - LAYOUT.text for at in LAYOUT.span(frame, k))
                (grad,) = torch.autograd.grad(logits[:, begin:end].sum(), features, retain_graph=True)
                touched = grad[0].abs().sum(1) > 0
                allowed = reach[begin:end].any(0)
                allowed[0] = False  # the first token is SOS whatever its features
                assert torch.equal(touched, allowed), (layers, frame, k)


def test_packed_rows_equal_single_samples() -> None:
    model = _model()
    first, second = LAYOUT, Layout(text=2, frames=2, scales=((1, 1), (3, 3)))
    lengths = torch.tensor([[2, 2]])
    parts, positions, alone = [], [], []
    for number, layout in enumerate((first, second)):
        text, features, scale = _inputs(layout)
        x = model.embed(text, features, scale, True)
        place = model.positions(layout, lengths[:, number])
        alone.append(model(x, place, bind_mask("blocks", Mask((layout,), lengths[:, number : number + 1]))))
        parts.append(x)
        positions.append(place)
    padding = 4
    parts.append(torch.randn(1, padding, 32))
    positions.append(torch.zeros(1, padding, 3))
    mask = Mask((first, second), lengths, padding=padding)
    packed = model(torch.cat(parts, 1), torch.cat(positions, 1), bind_mask("blocks", mask))
    assert torch.allclose(packed[:, : first.length], alone[0], atol=1e-5)
    assert torch.allclose(packed[:, first.length : -padding], alone[1], atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "wanted", "layers", "width", "heads"),
    [("videoar_l", 926e6, 24, 1536, 12), ("videoar_xl", 2.0e9, 32, 2048, 16), ("videoar_4b", 4.0e9, 36, 2560, 32)],
)
def test_recipes_have_the_papers_sizes(root: Path, recipe: str, wanted: float, layers: int, width: int, heads: int) -> None:
    config = load(root / "configs" / f"{recipe}.yaml").get(ModelConfig)
    assert (config.layers, config.width, config.heads) == (layers, width, heads)
    with torch.device("meta"):
        model = VideoAR(config, 48, TextTokenizer.make(config).vocabulary)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert abs(count / wanted - 1) < (0.001 if recipe == "videoar_l" else 0.01), f"{count:,}"


@pytest.mark.parametrize(
    "change",
    [
        {"rope": "flat"},
        {"rope_spatial": "aligned"},
        {"rope_split": (0.0, 0.5, 0.5)},
        {"rope_base": 100.0},
        {"qk_norm": False},
        {"scale_embedding": False},
    ],
)
def test_switches_change_the_model_and_keep_it_trainable(change: dict[str, object]) -> None:
    layout, length = LAYOUT, torch.tensor([3])
    outputs = []
    for config in (CONFIG, CONFIG.model_copy(update=change)):
        model = _model(config)
        text, features, scale = _inputs(layout)
        attend = bind_mask("blocks", Mask((layout,), length.unsqueeze(1)))
        hidden = model(model.embed(text, features, scale, True), model.positions(layout, length), attend)
        hidden.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert name.startswith("head") or (parameter.grad is not None and parameter.grad.isfinite().all()), name
        outputs.append(hidden)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)


def test_initial_logits_are_near_chance() -> None:
    model = _model(ModelConfig(layers=4, width=128, heads=4))
    text, features, scale = _inputs(LAYOUT, 4)
    length = torch.full((4,), 3)
    attend = bind_mask("blocks", Mask((LAYOUT,), length.unsqueeze(1)))
    with torch.no_grad():
        logits = model.head(model(model.embed(text, features, scale, True), model.positions(LAYOUT, length), attend))[0]
    assert 0.1 < float(logits.std()) < 1.0
