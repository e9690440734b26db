"""The estimate of a job against hand counts, and the command that prints it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from cluster.config import Config, load
from cluster.runtime.source_tree import source_root
from pretrain.attention.token_layout import Layout
from pretrain.data.batch import arrange
from pretrain.data.config import CurriculumConfig
from pretrain.estimate.flops import EstimateError, attended_pairs, training_flops
from pretrain.estimate.job_estimate import FULL, Machine, estimate_job, text_lengths
from pretrain.estimate.memory import LIVE_PARAMETERS

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


def test_zero_divides_by_the_ranks_what_its_stage_says(tmp_path: Path) -> None:
    def need(stage: int, dtype: str = "bfloat16") -> dict[str, float]:
        zero = f"deepspeed.zero_optimization={{stage: {stage}, reduce_bucket_size: 1000}}"
        made = estimate_job(config(tmp_path, f"train.dtype={dtype}", "train.ema=0.9", zero), MACHINE)
        assert made.memory.buckets == (0 if stage == 0 else 1000 * (2 if dtype == "bfloat16" else 4))
        left_out = ("activations", "reduction", "buckets")
        return {name: size / made.parameters for name, size in vars(made.memory).items() if name not in left_out}

    assert need(0, "float32") == {
        "weights": 4.0, "gradients": 4.0, "optimizer": 8.0, "average": 0.5, "gathered": 0.0, "update": 0.0,
    }  # fmt: skip
    first = {"weights": 2.0, "gradients": 4.0, "optimizer": 1.5, "average": 0.5, "gathered": 0.0, "update": 1.0}
    assert need(1) == first
    assert need(2) == {**first, "gradients": 0.5, "update": 0.5}
    assert need(3) == {**first, "weights": 0.25, "gradients": 0.5, "gathered": 2.0, "update": 0.5}
    assert need(3, "float32") == {**need(3), "weights": 0.5, "gathered": 4.0}


def test_gathered_weights_stop_at_deepspeeds_limit_unless_compiled_blocks_hold_on_to_them(tmp_path: Path) -> None:
    wide = ("model.width=4096", "model.layers=32")
    block = 4 * 4096**2 + 3 * 4096 * 10944
    big = estimate_job(config(tmp_path, *wide, "model.compile=false"), MACHINE)
    assert big.parameters > LIVE_PARAMETERS and big.memory.gathered == 2 * (LIVE_PARAMETERS + block)
    limit = "deepspeed.zero_optimization={stage: 3, stage3_max_live_parameters: 1000}"
    assert estimate_job(config(tmp_path, *wide, "model.compile=false", limit), MACHINE).memory.gathered == 2 * (1000 + block)
    full = ("train.activation_checkpointing=full",)
    assert estimate_job(config(tmp_path, *wide, *full), MACHINE).memory.gathered == big.memory.gathered
    held = estimate_job(config(tmp_path, *wide), MACHINE)
    assert held.memory.gathered == 2 * held.parameters


def test_lower_stages_are_estimated_under_zero_3_only(tmp_path: Path) -> None:
    made = estimate_job(config(tmp_path), MACHINE)
    assert [(each.stage, each.fits) for each in made.lower] == [(1, True), (2, True)]
    first = estimate_job(config(tmp_path, "deepspeed.zero_optimization={stage: 1}"), MACHINE)
    assert first.lower == () and first.memory.total == made.lower[0].memory > made.lower[1].memory
    between = (made.lower[0].memory + made.lower[1].memory) / 2
    small = estimate_job(config(tmp_path), replace(MACHINE, memory_gb=between / FULL / 1e9))
    assert [each.fits for each in small.lower] == [False, True]


def test_tokens_flops_and_hours_by_hand(tmp_path: Path) -> None:
    made = estimate_job(config(tmp_path), MACHINE, text=16)
    (stage,) = made.stages
    length = 16 + 5 * 130  # 17 frames are 5 latents; 8x8 has 130 positions
    each = training_flops(
        made.parameters, length, 4, 256, attended_pairs(Layout(16, 5, tuple((side, side) for side in (1, 2, 3, 4, 6, 8))))
    )
    assert stage.samples == 1600 and stage.tokens == 1600 * length and stage.flops == 1600 * each
    assert stage.compute_hours == pytest.approx(100 * 2 * each / 5e14 / 3600)  # 16 samples on 8 GPUs: 2 each
    traffic = 100 * 2 * (3 * 2 * made.parameters * 7 / 8) / 100e9 / 3600
    assert stage.traffic_hours == pytest.approx(traffic)
    assert stage.hours == pytest.approx(max(stage.compute_hours, stage.traffic_hours)) == made.hours


def test_a_window_saves_flops_and_text_costs_them(tmp_path: Path) -> None:
    plain = estimate_job(config(tmp_path), MACHINE).stages[0].flops
    assert estimate_job(config(tmp_path, "objective.window=1"), MACHINE).stages[0].flops < plain
    assert estimate_job(config(tmp_path), MACHINE, text=0).stages[0].flops < plain


def test_ranks_that_a_batch_does_not_fill_cost_time(tmp_path: Path) -> None:
    fits = estimate_job(config(tmp_path), MACHINE, text=16).stages[0]
    odd = estimate_job(config(tmp_path), replace(MACHINE, gpus=12), text=16).stages[0]
    assert fits.idle == 0 and odd.idle == pytest.approx(1 / 3)
    assert odd.compute_hours == pytest.approx(fits.compute_hours), "12 GPUs need 2 rounds too"


def test_micro_batches_are_those_of_the_trainer(tmp_path: Path) -> None:
    """16 samples on 8 GPUs are 2 each, whatever more a micro-batch may hold; and 3 of 4 make 2 rounds of 2, not of 3."""
    plain = estimate_job(config(tmp_path), MACHINE, text=16)
    large = estimate_job(config(tmp_path, "train.micro_batch=8"), MACHINE, text=16)
    assert large.stages[0].idle == 0 and large.stages[0].compute_hours == plain.stages[0].compute_hours
    assert large.stages[0].traffic_hours == plain.stages[0].traffic_hours / 2
    two = estimate_job(config(tmp_path, "train.micro_batch=2"), MACHINE, text=16)
    assert large.memory == two.memory, "and memory is that of the micro-batches that there are"
    four = estimate_job(config(tmp_path, "train.micro_batch=3"), replace(MACHINE, gpus=4), text=16)
    assert four.stages[0].idle == 0
    assert (
        four.memory.activations
        == estimate_job(config(tmp_path, "train.micro_batch=2"), replace(MACHINE, gpus=4)).memory.activations
    )


def test_rows_are_packed_where_the_trainer_packs_them(tmp_path: Path) -> None:
    """Images with captions of 1 to 256 tokens: a sample of 128 + 6 x 5 ... positions fills a small part of a row."""
    stage = "curriculum.stages=[{name: a, steps: 100, mix: [{bucket: f017x64x64, frames: 1, batch: 512}]}]"
    given = (stage, "model.text_length=256")
    plain = estimate_job(config(tmp_path, *given), MACHINE).stages[0]
    packed = estimate_job(config(tmp_path, *given, "train.pack_tokens=8192"), MACHINE).stages[0]
    lengths = text_lengths(257 / 2, 256, 512)
    dealt = arrange(lengths, 130, 256, micro_batch=1, world=8, budget=8192, above=0.03)
    assert dealt.row and (packed.packed, plain.packed) == (True, False)
    assert packed.traffic_hours == pytest.approx(plain.traffic_hours * len(dealt.micro_batches[0]) / 64)
    assert plain.idle > 0.3 and packed.idle < 0.02 and packed.tokens == plain.tokens == 100 * (512 * 130 + sum(lengths))
    assert packed.compute_hours < 0.7 * plain.compute_hours
    none = estimate_job(config(tmp_path, *given, "train.pack_tokens=8192"), MACHINE, text=256).stages[0]
    assert not none.packed, "captions of one length leave nothing to pack"


def test_lengths_of_text_are_spread_as_far_as_they_can_be() -> None:
    assert text_lengths(0, 64, 3) == [0, 0, 0] and text_lengths(64, 64, 3) == [64, 64, 64]
    for mean in (10, 32, 50):
        found = text_lengths(mean, 64, 1000)
        assert sum(found) / 1000 == pytest.approx(mean, abs=0.5) and min(found) >= 0 and max(found) <= 64
        assert max(found) - min(found) > 1.9 * min(mean, 64 - mean)


@pytest.mark.parametrize("recipe", ["videoar_l", "videoar_xl", "videoar_4b", "ucf101"])
@pytest.mark.parametrize("gpus", [8, 64, 1024])
def test_recipes_are_planned_as_they_will_be_trained(recipe: str, gpus: int) -> None:
    """No hours of a recipe go to weights that are gathered for a short sample each; what idles are ranks without a sample."""
    loaded = load(source_root() / "configs" / f"{recipe}.yaml")
    made = estimate_job(loaded, Machine(gpus, 80.0, 989e12))
    for stage, given in zip(made.stages, loaded.get(CurriculumConfig).stages):
        ranks = min(1.0, min(mix.batch or 1e9 for mix in given.mix) / gpus)
        assert stage.idle < 0.15 or stage.idle < 1.05 - ranks, (stage.name, stage.idle)
        if gpus == 8:
            assert stage.hours < 1.6 * stage.compute_hours, stage


def test_a_job_without_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EstimateError, match=r"curriculum\.stages is empty"):
        estimate_job(config(tmp_path, "curriculum.stages=[]"), MACHINE)


def test_the_command_prints_a_plan_and_says_when_it_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(config(tmp_path).source)
    assert main.run(["plan", "-c", file, "--gpus", "8", "--gpu-memory", "80", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["machine"]["peak"] == 989e12 and found["stages"][0]["samples"] == 1600
    assert main.run(["plan", "-c", file, "--gpus", "8", "--gpu-memory", "0.01"]) == 1
    text = capsys.readouterr().out
    assert "does NOT fit" in text and "GPU hours at 40%" in text and "lower ZeRO stages would not fit: ZeRO-1 " in text
    assert main.run(["plan", "-c", file, "--gpus", "16", "--gpu-memory", "80"]) == 0
    text = capsys.readouterr().out
    assert "ZeRO-1 would fit (" in text and f"checkpoints: {found['checkpoint'] / 2e9:.1f} GB per host of 8 GPU(s)" in text
