import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pretrain.model.block_attention
from cluster.cli import main
from cluster.config import Config, load
from pretrain.data.batch import Batch
from pretrain.estimate.flops import causal_pairs, training_flops
from pretrain.estimate.hardware import Machine, PlanError, peak_of
from pretrain.estimate.job_estimate import make, spec_of
from pretrain.estimate.memory import LIVE_PARAMETERS, Checkpointing, activation_bytes, block_bytes, parameters_of
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from tokenizer.config import TokenizerConfig
from tokenizer.quantization.codec_spec import CodecSpec

ROOT = Path(__file__).resolve().parents[3]
MACHINE = Machine(gpus=8, memory_gb=80.0, peak=1e15, mfu=0.5, link_gb=100.0)
STAGE = "{name: a, steps: 100, mix: [{bucket: f017x64x64, batch: 16}]}"


def config(tmp_path: Path, *overrides: str) -> Config:
    file = tmp_path / "job.yaml"
    file.write_text(
        "tokenizer: {network: {bits: 16, multipliers: [1, 1, 1, 1]}}\n"
        "model: {layers: 4, width: 256, heads: 4, text_length: 16}\n"
        f"curriculum: {{stages: [{STAGE}]}}\n"
    )
    return load(file, overrides)


@pytest.mark.parametrize(("recipe", "millions"), [("l", 926), ("xl", 2000), ("4b", 4000)])
def test_the_recipes_have_the_sizes_of_the_paper(root: Path, recipe: str, millions: float) -> None:
    found = load(root / f"configs/videoar_{recipe}.yaml")
    assert parameters_of(found.get(ModelConfig), spec_of(found.get(TokenizerConfig)).bits) / 1e6 == pytest.approx(
        millions, rel=0.005
    )


def test_parameters_are_those_of_the_real_model(tmp_path: Path) -> None:
    model = config(tmp_path).get(ModelConfig)
    real = VideoAR(model, 16, TextTokenizer.make(model).vocabulary)
    assert parameters_of(model, 16) == sum(parameter.numel() for parameter in real.parameters())


def test_zero_divides_by_the_ranks_what_its_stage_says(tmp_path: Path) -> None:
    def need(*overrides: str) -> dict[str, float]:
        made = make(config(tmp_path, "train.dtype=bfloat16", "train.ema=0.9", *overrides), MACHINE)
        return {name: size / made.parameters for name, size in vars(made.memory).items() if name != "activations"}

    whole = {"weights": 2.0, "gradients": 2.0, "optimizer": 12.0, "average": 0.5, "gathered": 0.0}
    assert need("deepspeed.zero_optimization={stage: 0}") == whole
    assert need("deepspeed.zero_optimization={stage: 1}") == {**whole, "optimizer": 1.5}
    assert need("deepspeed.zero_optimization={stage: 2}") == {**whole, "optimizer": 1.5, "gradients": 0.25}
    cut = {"weights": 0.25, "gradients": 0.25, "optimizer": 1.5, "average": 0.5, "gathered": 2.0}
    assert need("deepspeed.zero_optimization={stage: 3}") == cut


def test_gathered_weights_stop_at_deepspeeds_limit(tmp_path: Path) -> None:
    big = make(config(tmp_path, "model.width=4096", "model.layers=32"), MACHINE)
    assert big.parameters > LIVE_PARAMETERS and big.memory.gathered == 2 * LIVE_PARAMETERS
    low = make(config(tmp_path, "deepspeed.zero_optimization={stage: 3, stage3_max_live_parameters: 1000}"), MACHINE)
    assert low.memory.gathered == 2 * 1000


def test_tokens_flops_and_hours_by_hand(tmp_path: Path) -> None:
    made = make(config(tmp_path), MACHINE)
    (stage,) = made.stages
    length = 16 + 5 * 130  # 17 frames are 5 latents; 8x8 has 130 positions
    each = training_flops(made.parameters, length, 4, 256, causal_pairs(16, 5, [1, 4, 9, 16, 36, 64]))
    assert stage.samples == 1600 and stage.tokens == 1600 * length and stage.flops == 1600 * each
    assert stage.compute_hours == pytest.approx(100 * 2 * each / 5e14 / 3600)  # 16 samples on 8 GPUs: 2 each
    traffic = 100 * 2 * (3 * 2 * made.parameters * 7 / 8) / 100e9 / 3600
    assert stage.traffic_hours == pytest.approx(traffic)
    assert stage.hours == pytest.approx(max(stage.compute_hours, stage.traffic_hours)) == made.hours


def test_a_window_saves_flops_and_text_costs_them(tmp_path: Path) -> None:
    plain = make(config(tmp_path), MACHINE).stages[0].flops
    assert make(config(tmp_path, "objective.window=1"), MACHINE).stages[0].flops < plain
    assert make(config(tmp_path), MACHINE, text=0).stages[0].flops < plain


def test_ranks_that_a_batch_does_not_fill_cost_time(tmp_path: Path) -> None:
    fits = make(config(tmp_path), MACHINE).stages[0]
    odd = make(config(tmp_path), replace(MACHINE, gpus=12)).stages[0]
    assert fits.idle == 0 and odd.idle == pytest.approx(1 / 3)
    assert odd.compute_hours == pytest.approx(fits.compute_hours), "12 GPUs need 2 rounds too"


def test_a_job_without_stages_or_an_unknown_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"curriculum\.stages is empty"):
        make(config(tmp_path, "curriculum.stages=[]"), MACHINE)
    with pytest.raises(PlanError, match="no peak is known for GPU `Voodoo`"):
        peak_of("Voodoo")
    assert peak_of("h100") == 989e12


@pytest.mark.parametrize("hidden", [0, 1024])
@pytest.mark.parametrize("policy", ["none", "selective", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_really_keeps(
    hidden: int, policy: Checkpointing, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(pretrain.blocks, "KEPT", 0)  # short sequences would keep their attention weights too
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
def test_the_peak_of_a_step_is_the_planned_one(policy: Checkpointing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the allocator's own count, taken as the benchmark takes it."""
    torch.set_num_threads(1)
    monkeypatch.setattr(pretrain.blocks, "KEPT", 0)
    source = importlib.util.spec_from_file_location("memory_model", ROOT / "benchmarks" / "memory_model.py")
    assert source is not None and source.loader is not None
    bench = importlib.util.module_from_spec(source)
    sys.modules["memory_model"] = bench  # its dataclass looks its module up
    source.loader.exec_module(bench)
    objective = bench.thin(128, 3, policy)
    objective(bench.batch(objective, (1, 8, 8)), 0, 0.0)["loss"].backward()
    assert 0.85 < bench.measure(objective, (4, 16, 16), policy).share < 1.15


def test_the_command_prints_a_plan_and_says_when_it_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(config(tmp_path).source)
    assert main.run(["plan", "-c", file, "--gpus", "8", "--gpu-memory", "80", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["machine"]["peak"] == 989e12 and found["stages"][0]["samples"] == 1600
    assert main.run(["plan", "-c", file, "--gpus", "8", "--gpu-memory", "0.01"]) == 1
    text = capsys.readouterr().out
    assert "does NOT fit" in text and "GPU hours at 40%" in text
