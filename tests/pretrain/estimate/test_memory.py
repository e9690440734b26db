"""The memory that is planned is the memory that a step really takes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cluster.config import load
from pretrain.data.batch import Batch
from pretrain.data.config import Mix
from pretrain.estimate.job_estimate import spec_of
from pretrain.estimate.memory import Checkpointing, activation_bytes, block_bytes, layout_of, parameters_of
from pretrain.model import block_attention
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from tokenizer.config import TokenizerConfig
from tokenizer.quantization.codec_spec import CodecSpec


@pytest.mark.parametrize(("recipe", "millions"), [("l", 926), ("xl", 2000), ("4b", 4000)])
def test_the_recipes_have_the_sizes_of_the_paper(root: Path, recipe: str, millions: float) -> None:
    found = load(root / f"configs/videoar_{recipe}.yaml")
    assert parameters_of(found.get(ModelConfig), spec_of(found.get(TokenizerConfig)).bits) / 1e6 == pytest.approx(
        millions, rel=0.005
    )


def test_parameters_are_those_of_the_real_model() -> None:
    model = ModelConfig(layers=4, width=256, heads=4, text_length=16)
    real = VideoAR(model, 16, TextTokenizer.make(model).vocabulary)
    assert parameters_of(model, 16) == sum(parameter.numel() for parameter in real.parameters())


@pytest.mark.parametrize("hidden", [0, 1024])
@pytest.mark.parametrize("policy", ["none", "selective", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_really_keeps(
    hidden: int, policy: Checkpointing, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(block_attention, "MAX_KEPT_WEIGHTS", 0)  # short sequences would keep their attention weights too
    model = ModelConfig(layers=4, width=128, heads=2, ffn=hidden, text_length=16)
    spec = CodecSpec(16, 8, 4, "x" * 64)
    tokenizer = TextTokenizer.make(model)
    network = VideoAR(model, spec.bits, tokenizer.vocabulary).to(dtype)
    network.activation_checkpointing, network.selective = policy == "full", policy == "selective"
    grid, samples = spec.grid(9, 64, 64), 2
    text, length = tokenizer.batch(["a short text"] * samples)
    batch = Batch(
        bits=torch.randint(0, 256, (samples, grid[0] * spec.frame_bytes(8, 8)), dtype=torch.uint8),
        text=text,
        text_length=length,
        weight=torch.full((samples,), 1 / samples),
        seeds=torch.arange(samples),
        grid=grid,
        ids=("a",) * samples,
    )
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Objective(network, ObjectiveConfig(), spec)(batch, 0, 0.0)
    tokens, size = samples * (text.shape[1] + grid[0] * 130), dtype.itemsize
    planned = activation_bytes(model, tokens, spec.bits, size=size, policy=policy)
    if policy == "full":
        planned -= tokens * block_bytes(model, size, policy)  # the one block that runs again in the backward pass
    planned -= tokens * size * model.width  # the hidden states' gradient, which the head keeps outside autograd
    assert float(sum(kept.values())) == pytest.approx(planned, rel=0.02)


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_the_peak_of_a_step_is_the_planned_one(root: Path, policy: Checkpointing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the allocator's own count, taken as the benchmark takes it."""
    torch.set_num_threads(1)
    monkeypatch.setattr(block_attention, "MAX_KEPT_WEIGHTS", 0)
    source = importlib.util.spec_from_file_location("memory_model", root / "benchmarks" / "memory_model.py")
    assert source is not None and source.loader is not None
    bench = importlib.util.module_from_spec(source)
    sys.modules["memory_model"] = bench  # its dataclass looks its module up
    source.loader.exec_module(bench)
    objective = bench.thin(128, 3, policy)
    objective(bench.batch(objective, (1, 8, 8)), 0, 0.0)["loss"].backward()
    assert 0.85 < bench.measure(objective, (4, 16, 16), policy).share < 1.15


def test_a_mix_of_fewer_frames_is_a_shorter_sequence() -> None:
    spec = CodecSpec(16, 8, 4, "x" * 64)
    whole = layout_of(Mix(bucket="f017x64x64", batch=1), spec, 16)
    assert (whole.text, whole.frames, whole.length) == (16, 5, 16 + 5 * 130)
    assert layout_of(Mix(bucket="f017x64x64", frames=5, batch=1), spec, 0).length == 2 * 130
