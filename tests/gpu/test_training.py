"""On a card: the losses are the CPU's, a step never waits for the card, and a stopped run continues to the last digit."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cluster.runtime.ports import free_port
from cluster.runtime.process_group import Ranks
from pretrain.data.batch import Batch
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.ema import Ema
from pretrain.engine.engine import Engine
from pretrain.loop.guard import Guard
from pretrain.loop.step_metrics import DeviceSums, StepFlags
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from tests.helpers import training
from tests.helpers.made_shards import SPEC

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODEL = ModelConfig(layers=2, width=128, heads=2, text_length=8)
STEPS, GRID = 10, (3, 4, 4)


def objective() -> Objective:
    return Objective(VideoAR(MODEL, SPEC.bits, 256), ObjectiveConfig(), SPEC)


def batch(seed: int) -> Batch:
    """Three samples of random bits, half of them fixed, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    size = GRID[0] * SPEC.frame_bytes(*GRID[1:])
    return Batch(
        bits=torch.randint(0, 256, (3, size), dtype=torch.uint8, generator=generator) & 0x5A,
        text=torch.randint(0, 256, (3, 8), generator=generator),
        text_length=torch.tensor([8, 3, 1]),
        weight=torch.full((3,), 1 / 3),
        seeds=torch.tensor([3 * seed, 3 * seed + 1, 3 * seed + 2]),
        grid=GRID,
        ids=("", "", ""),
    )


def losses(device: torch.device, dtype: torch.dtype) -> list[float]:
    """Train with master weights in float32, as ZeRO keeps them; window and hidden frames are on."""
    torch.manual_seed(0)
    master = objective().to(device)
    working = copy.deepcopy(master).to(dtype)
    optimizer = torch.optim.AdamW(master.parameters(), lr=3e-3)
    found = []
    for step in range(STEPS):
        loss = working(batch(step).to(device), 1, 0.3)["loss"]
        loss.backward()
        for whole, part in zip(master.parameters(), working.parameters(), strict=True):
            whole.grad, part.grad = part.grad.float() if part.grad is not None else None, None
        optimizer.step()
        with torch.no_grad():
            for whole, part in zip(master.parameters(), working.parameters(), strict=True):
                part.copy_(whole)
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-2)])
def test_ten_losses_are_those_of_the_cpu(dtype: torch.dtype, bound: float) -> None:
    ours, reference = losses(DEVICE, dtype), losses(torch.device("cpu"), dtype)
    assert reference[0] - reference[-1] > 5 * bound, "the loss must fall by more than what is tolerated"
    for step, (one, two) in enumerate(zip(ours, reference, strict=True), 1):
        assert abs(one - two) <= bound * two, f"step {step}: {one:.5f} on the card, {two:.5f} on the CPU"


def test_a_step_never_waits_for_the_card(ranks: Ranks) -> None:
    """From the batch in page-locked memory to the metrics on their way back; ZeRO-1 and 2 still read the norm on the host."""
    engine = Engine(objective, TrainConfig(), DeepSpeedConfig(zero_optimization={"stage": 3}), ranks, seed=0)

    def step(given: Batch) -> DeviceSums:
        out = engine.forward(given.to(DEVICE), 1, 0.3, last=True)
        sums = DeviceSums(out, ranks, StepFlags(tokens=1.0))
        engine.backward(out["loss"], skip=Guard.skip(sums.loss, 10.0))
        outcome = engine.step(1e-3)
        average.update(engine.slices(), outcome.applied)
        sums.send(applied=outcome.applied, grad_norm=outcome.grad_norm)
        return sums

    average = Ema(0.9)
    average.start(engine.slices())
    batches = [batch(seed).pin_memory() for seed in range(6)]
    for given in batches[:3]:
        step(given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [step(given) for given in batches[3:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    read = [sums.read() for sums in found]
    assert all(0 < metrics.loss < 10 and metrics.values["applied"] == [1.0] for metrics in read)
    assert all(0 < metrics.values["grad_norm"][0] < 10 and metrics.flags == StepFlags(tokens=1.0) for metrics in read)


def test_a_step_skipped_on_the_card_leaves_no_trace(ranks: Ranks) -> None:
    def trained(steps: tuple[int, ...]) -> tuple[dict[str, torch.Tensor], list[bool]]:
        engine = Engine(objective, TrainConfig(), DeepSpeedConfig(zero_optimization={"stage": 3}), ranks, seed=0)
        average, applied = Ema(0.5), []
        average.start(engine.slices())
        for number in steps:
            for part in (0, 10):  # two micro-batches
                loss = engine.forward(batch(abs(number) + part).to(DEVICE), 1, 0.3, last=part == 10)["loss"]
                engine.backward(loss, skip=torch.tensor(number < 0, device=DEVICE) if part else None)
            outcome = engine.step(1e-2)
            average.update(engine.slices(), outcome.applied)
            applied.append(bool(outcome.applied))
        state = {name: value.clone() for name, value in engine.slices()} | {f"ema {k}": v for k, v in average.slices.items()}
        for group, moments in enumerate(engine.deepspeed.optimizer.optimizer.state.values()):
            state |= {f"{group} {name}": moments[name].clone() for name in ("step", "exp_avg", "exp_avg_sq")}
        return state, applied

    clean, _ = trained((1, 2, 4))
    skipped, applied = trained((1, 2, -3, 4))
    assert applied == [True, True, False, True] and clean.keys() == skipped.keys()
    for name, value in clean.items():
        assert torch.equal(value, skipped[name]), name


def start(config: Path, run: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start pretrain.train with one rank on the card, in bfloat16."""
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(training.ROOT), os.environ.get("PYTHONPATH")))),
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    short = ("train.dtype=bfloat16", "curriculum.stages.0.steps=6", "curriculum.stages.1.steps=4")
    command = [sys.executable, "-m", "pretrain.train", "-c", str(config), f"run.dir={run}", *short, *overrides]
    return subprocess.Popen(
        command, env=environment, cwd=config.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str], code: int) -> None:
    output, _ = process.communicate(timeout=training.PATIENCE)
    assert process.returncode == code, f"exit code {process.returncode}, {code} expected:\n{output}"


def test_a_stopped_run_continues_to_the_last_digit(tmp_path: Path) -> None:
    config = training.prepare(tmp_path)
    whole, stopped = start(config, tmp_path / "whole"), start(config, tmp_path / "stopped", "train.stop_after=4")
    finish(stopped, 75)
    finish(start(config, tmp_path / "stopped"), 0)
    finish(whole, 0)
    lines = training.metrics(tmp_path / "whole")
    assert len(lines) == 10 and all(line["compilations"] == 0 for line in lines), "each stage is warm before its first step"
    training.compare(tmp_path / "whole", tmp_path / "stopped")
