"""Training: resume to the last digit, damaged checkpoints, any number of ranks under ZeRO, checkpoints of earlier versions."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cluster.config import load
from cluster.config.precision import DtypeError, Hardware
from cluster.runtime.job_protocol import STOPPED
from cluster.runtime.ports import free_port
from cluster.runtime.process_group import Ranks
from tokenizer.training import train as train_module
from tokenizer.training.engine import TrainingError
from tokenizer.training.train import finished, recipe_digest, recipe_values, settled

ROOT = Path(__file__).resolve().parents[3]
DRIVER = "tests.helpers.drive_train"
OLD = ROOT / "tests" / "data" / "before_rooms"
PATIENCE = 600
"""Seconds after which a run counts as hung: a crowded machine makes two minutes of ten seconds."""
CONFIG = """
run: {{dir: {folder}/run, seed: 5}}
metrics: {{port: 0}}
tokenizer:
  weights: {folder}/tokenizer
  network: {{bits: 8, width: 8, multipliers: [1, 1, 2], blocks: 1, groups: 4, temporal_stride: 2}}
  loss: {{perceptual: 0.0, perceptual_net: none, gan: 0.3, discriminator_width: 8, entropy: 0.0}}
  training:
    steps: 6
    buckets:
      - {{frames: 5, height: 32, width: 32, batch: 2, weight: 2}}
      - {{frames: 1, height: 24, width: 32, batch: 2}}
    learning_rate: 1.0e-3
    warmup: 2
    discriminator_start: 2
    checkpoint_every: 2
    log_every: 1
    single_scale_steps: 1
    dtype: float32
"""


def configure(folder: Path) -> Path:
    path = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(CONFIG.format(folder=folder))
    return path


def run(words: list[str], *, ranks: int = 1, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if ranks == 1:
        command = [sys.executable, "-m", DRIVER, *words]
    else:
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
        launcher += ["--master_port", str(free_port())]
        command = [*launcher, "--module", DRIVER, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd=folder)


def die(config: Path, step: int, *words: str, ranks: int = 1) -> str:
    """Run until the clip source fails at `step`; returns what was printed."""
    died = run([str(config), str(step), *words], ranks=ranks)
    assert died.returncode != 0
    assert f"stopped on purpose at step {step}" in died.stderr + died.stdout
    return died.stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(folder / "tokenizer" / "tokenizer.safetensors"))


def figures(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "run" / "tokenizer-metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    done = run([str(configure(folder)), "-1"])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.system
def test_a_run_that_died_continues_to_the_last_digit_past_damaged_checkpoints(straight: Path, tmp_path: Path) -> None:
    config = configure(tmp_path)
    checkpoints = tmp_path / "run" / "tokenizer-checkpoints"
    newest = checkpoints / "step-00000004"
    die(config, 5)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000004"]

    flipped = newest / "generator.safetensors"
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    said = die(config, 5)
    assert "checkpoint step-00000004 is" in said and "generator.safetensors does not match its sha256" in said
    assert "resuming at step 2" in said

    (newest / "discriminator.safetensors").unlink()
    (checkpoints / "step-00000006.partial").mkdir()
    said = die(config, 5)
    assert "checkpoint step-00000004 is" in said and "discriminator.safetensors is missing" in said
    assert "resuming at step 2" in said
    assert not (checkpoints / "step-00000006.partial").exists()

    again = run([str(config), "-1"])
    assert again.returncode == 0, again.stderr
    assert "resuming at step 4" in again.stdout
    want, found = weights(straight), weights(tmp_path)
    assert set(want) == set(found)
    assert all(torch.equal(want[name], found[name]) for name in want)
    assert [line["step"] for line in figures(tmp_path)] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(figures(straight), figures(tmp_path)):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    third = run([str(config), "0"])
    assert third.returncode == 0, third.stderr
    assert "nothing to do" in third.stdout


@pytest.mark.system
def test_a_preempted_run_keeps_the_steps_that_it_made(tmp_path: Path) -> None:
    """One of two ranks gets SIGTERM between checkpoints: both stop after the same step, with a checkpoint, and go on to equal weights."""
    whole, config = configure(tmp_path / "whole"), configure(tmp_path / "stopped")
    done = run([str(whole), "-1", "tokenizer.training.checkpoint_every=100"], ranks=2)
    assert done.returncode == 0, done.stderr
    words = [str(config), "term", "tokenizer.training.checkpoint_every=100"]
    stopped = run(words, ranks=2)
    assert stopped.returncode == STOPPED, stopped.stderr
    assert "(SIGTERM); run the same command to continue" in stopped.stdout
    (kept,) = (tmp_path / "stopped" / "run" / "tokenizer-checkpoints").iterdir()
    step = int(kept.name.removeprefix("step-"))
    assert 1 <= step <= 4
    (tmp_path / "stopped" / "run" / "stop").touch()  # as an operator asks for it
    again = run([*words[:1], "-1", *words[2:]], ranks=2)
    assert again.returncode == STOPPED and f"stopped after step {step + 1} (" in again.stdout, again.stderr
    assert not (tmp_path / "stopped" / "run" / "stop").exists()
    again = run([*words[:1], "-1", *words[2:]], ranks=2)
    assert again.returncode == 0 and f"resuming at step {step + 1}" in again.stdout, again.stderr
    want, found = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(want[name], found[name]) for name in want)


@pytest.mark.system
def test_a_stop_that_comes_with_the_last_step_does_not_stop_the_next_job_in_the_folder(tmp_path: Path) -> None:
    config = configure(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()
    done = run([str(config), "-1", "tokenizer.training.steps=1"])
    assert done.returncode == 0 and (tmp_path / "tokenizer").is_dir(), done.stderr
    assert not (tmp_path / "run" / "stop").exists()


@pytest.mark.system
def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """A run of the code before checkpoints were hashed, stopped at step 5, and the losses that it would have had."""
    shutil.copytree(OLD / "tokenizer-run", tmp_path / "tokenizer-run")
    shutil.copy(OLD / "tokenizer.yaml", tmp_path)
    refused = run(["tokenizer.yaml", "-1"], ranks=2, folder=tmp_path)
    assert refused.returncode != 0
    assert "was written by 1 ranks in an earlier format" in refused.stderr + refused.stdout
    done = run(["tokenizer.yaml", "-1"], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 4" in done.stdout
    want, found = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (OLD / "straight-tokenizer.jsonl", tmp_path / "tokenizer-run" / "tokenizer-metrics.jsonl")
    )
    for a, b in zip(want, found, strict=True):
        assert math.isclose(a["loss"], b["loss"], rel_tol=1e-5), (a, b)


@pytest.mark.system
@pytest.mark.parametrize("stage", [0, 2])
def test_micro_batches_add_up_to_the_whole(straight: Path, tmp_path: Path, stage: int) -> None:
    words = [f"tokenizer.training.zero_stage={stage}", "tokenizer.training.micro_batch=1"]
    done = run([str(configure(tmp_path)), "-1", *words])
    assert done.returncode == 0, done.stderr + done.stdout
    for a, b in zip(figures(straight), figures(tmp_path), strict=True):
        assert math.isclose(a["loss"], b["loss"], rel_tol=2e-3), (a, b)
        assert math.isclose(a["grad_norm"], b["grad_norm"], rel_tol=2e-2)


@pytest.mark.system
@pytest.mark.parametrize(("stage", "ranks"), [(0, (2, 1)), (1, (1, 2)), (2, (2, 1)), (3, (2, 1, 2))])
def test_the_number_of_ranks_may_change_and_changes_nothing(
    straight: Path, tmp_path: Path, stage: int, ranks: tuple[int, ...]
) -> None:
    config, word = configure(tmp_path), f"tokenizer.training.zero_stage={stage}"
    for number, step in zip(ranks[:-1], (3, 5)):
        die(config, step, word, ranks=number)
    done = run([str(config), "-1", word], ranks=ranks[-1])
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"resuming at step {2 * (len(ranks) - 1)}" in done.stdout
    for a, b in zip(figures(straight), figures(tmp_path), strict=True):
        assert math.isclose(a["loss"], b["loss"], rel_tol=2e-3), (a, b)
        assert math.isclose(a["grad_norm"], b["grad_norm"], rel_tol=2e-2)
    want, found = weights(straight), weights(tmp_path)
    moved = torch.cat([(want[name] - found[name]).flatten() for name in want]).norm()
    assert moved / torch.cat([weight.flatten() for weight in want.values()]).norm() < 2e-3


@pytest.mark.system
def test_where_quantizers_stop_depends_on_the_clip_alone(tmp_path: Path) -> None:
    """Ranks and micro-batches cut a step's batch; each clip keeps the depth that was drawn for it."""
    word = "tokenizer.training.quantizer_dropout=0.6"
    cuts = {"whole": (1, []), "micro": (1, ["tokenizer.training.micro_batch=1"]), "ranks": (2, [])}
    for name, (ranks, words) in cuts.items():
        done = run([str(configure(tmp_path / name)), "-1", word, *words], ranks=ranks)
        assert done.returncode == 0, done.stderr + done.stdout
    for whole, micro, two in zip(*(figures(tmp_path / name) for name in cuts), strict=True):
        for other in (micro, two):
            assert math.isclose(whole["loss"], other["loss"], rel_tol=2e-3), (whole, other)
            assert math.isclose(whole["grad_norm"], other["grad_norm"], rel_tol=2e-2)
        if whole["step"] == 1:  # weights that no step has yet changed
            assert two["bit_entropy"] == micro["bit_entropy"], "both are means over single clips"
    plain = tmp_path / "plain"
    assert run([str(configure(plain)), "-1"]).returncode == 0
    assert figures(plain)[-1]["loss"] != figures(tmp_path / "whole")[-1]["loss"]


def test_the_figures_say_what_training_did(straight: Path) -> None:
    lines = figures(straight)
    assert {line["bucket"] for line in lines} <= {"f005x32x32", "f001x24x32"}
    assert "discriminator" not in lines[1]
    assert "discriminator" in lines[2]
    shapes = {"f005x32x32": "8x8", "f001x24x32": "6x8"}
    assert all(shapes[str(line["bucket"])] in line["bit_entropy"] for line in lines), "the last scale is always used"
    assert all(line["grad_norm"] > 0 for line in lines)
    record = json.loads((straight / "tokenizer" / "tokenizer.json").read_text())
    assert record["provenance"]["recipe"] == recipe_digest(load(straight / "config.yaml"))


def test_another_recipe_is_not_overwritten(straight: Path) -> None:
    with pytest.raises(TrainingError, match="another recipe"):
        finished(straight / "tokenizer", "0" * 64)
    assert not finished(straight / "absent", "0" * 64)


@pytest.mark.parametrize(
    ("word", "plain"),
    [
        ("loss.hardest=0.05", "loss.hardest=1"),
        ("training.quantization_ramp=5", "training.quantization_ramp=0"),
        ("training.quantizer_dropout=0.5", "training.quantizer_dropout=0"),
    ],
)
def test_a_later_option_counts_only_where_it_is_used(tmp_path: Path, word: str, plain: str) -> None:
    without, same, other = (
        recipe_digest(load(configure(tmp_path), words)) for words in ([], [f"tokenizer.{plain}"], [f"tokenizer.{word}"])
    )
    assert without == same != other
    assert word.split("=")[0].split(".")[1] not in json.dumps(recipe_values(load(configure(tmp_path))))


def test_the_type_is_the_recorded_one_and_auto_is_no_other_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(*, bfloat16: bool) -> None:
        monkeypatch.setattr(train_module, "hardware", lambda device: Hardware("a CPU", "cpu", bfloat16, "some feature"))

    def made(recorded: str | None, *words: str) -> str:
        return settled(
            load(configure(tmp_path), ["tokenizer.training.dtype=auto", *words]),
            Ranks(0, 1, torch.device("cpu"), ("here",)),
            recorded,
        ).training.dtype

    machine(bfloat16=True)
    assert made(None) == made("bfloat16") == "bfloat16" and made("float32") == "float32"
    machine(bfloat16=False)
    assert made(None) == made("float32") == "float32"
    with pytest.raises(DtypeError, match=r"tokenizer\.training\.dtype: bfloat16 is recorded"):
        made("bfloat16")
    assert made("bfloat16", "cluster.accept_slow_dtype=true") == "bfloat16"
    assert made(None, "tokenizer.training.dtype=bfloat16") == "bfloat16", "as configured, with a warning"
    digests = {
        kind: recipe_digest(load(configure(tmp_path), [f"tokenizer.training.dtype={kind}"])) for kind in ("auto", "float32")
    }
    assert digests["auto"] == digests["float32"], "runs that earlier versions began by default go on"
