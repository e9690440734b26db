"""On a card: a checkpoint is what was there when it was asked for, its copies run behind training, and a resume repeats every digit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.runtime import checkpoint_folders
from cluster.runtime.process_group import Ranks
from pretrain.checkpoint import reader
from pretrain.checkpoint.host_buffers import CudaSideStream, HostBuffers
from pretrain.checkpoint.writer import Checkpoints
from pretrain.data.batch import Batch
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.ema import Ema
from pretrain.engine.engine import Engine
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from tests.helpers.made_shards import SPEC
from tests.helpers.made_state import STATE

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GRID = (3, 4, 4)


def made(ranks: Ranks, stage: int) -> Engine:
    model = ModelConfig(layers=2, width=128, heads=2, text_length=8)
    zero = {"stage": stage, "reduce_bucket_size": 1_000_000}
    return Engine(
        lambda: Objective(VideoAR(model, SPEC.bits, 256), ObjectiveConfig(), SPEC),
        TrainConfig(),
        DeepSpeedConfig(zero_optimization=zero),
        ranks,
        seed=0,
    )


def step(number: int, engine: Engine, ema: Ema, saver: Checkpoints) -> float:
    """One step as the loop takes it; returns the loss."""
    generator = torch.Generator().manual_seed(number)
    size = GRID[0] * SPEC.frame_bytes(*GRID[1:])
    batch = Batch(
        bits=torch.randint(0, 256, (3, size), dtype=torch.uint8, generator=generator),
        text=torch.randint(0, 256, (3, 8), generator=generator),
        text_length=torch.tensor([8, 3, 1]),
        weight=torch.full((3,), 1 / 3),
        seeds=torch.tensor([3 * number, 3 * number + 1, 3 * number + 2]),
        grid=GRID,
        ids=("", "", ""),
    )
    loss = engine.forward(batch.to(DEVICE), 1, 0.3, last=True)["loss"]
    engine.backward(loss)
    saver.before_update()
    engine.step(1e-2)
    ema.update(engine.slices())
    saver.settle(*saver.flags())
    saver.prepare(engine, ema)
    return float(loss.detach())


@pytest.mark.parametrize("stage", [3, 1])
def test_a_resume_from_a_checkpoint_written_beside_training_repeats_its_losses(
    ranks: Ranks, stage: int, tmp_path: Path
) -> None:
    engine, ema = made(ranks, stage), Ema(0.5)
    ema.start(engine.slices())
    saver, losses = Checkpoints(tmp_path, ranks, 3, print), []
    for number in range(1, 7):
        losses.append(step(number, engine, ema, saver))
        if number == 3:
            saver.save(engine, replace(STATE, step=3, world=1, zero_stage=stage), ema, "x: 1\n")
    saver.finish()
    folder = checkpoint_folders.newest(tmp_path / "checkpoints", print)
    assert folder is not None and folder.name == "step-00000003"
    again, average = made(ranks, stage), Ema(0.5)
    reader.load(again, folder, folder, average)
    other = Checkpoints(tmp_path / "again", ranks, 3, print)
    assert [step(number, again, average, other) for number in range(4, 7)] == losses[3:]
    assert all(torch.equal(average.slices[name], value) for name, value in ema.slices.items())
    assert len(set(losses)) == 6


def test_copies_are_page_locked_follow_training_and_hold_the_update_back(tmp_path: Path) -> None:
    """The source is overwritten by work queued right after the mark: only the wait keeps it from being saved."""
    side = CudaSideStream(DEVICE)
    buffers = HostBuffers(side)
    source = torch.zeros(100_000_000, device=DEVICE)
    for value in (1.0, 3.0):
        buffers.begin()
        torch.cuda._sleep(100_000_000)  # about 50 ms: the side stream must wait for the fill
        source.fill_(value)
        host = buffers.take(source)
        copies = buffers.start()
        copies.mark.wait()
        source.fill_(-1.0)
        copies.finish()
        assert host.is_pinned() and buffers.problem == ""
        assert float(host.min()) == float(host.max()) == value
    buffers.begin(tmp_path)
    host = buffers.take(source)
    buffers.start().finish()
    assert float(host.min()) == float(host.max()) == -1.0


def test_a_save_never_waits_for_the_card(ranks: Ranks, tmp_path: Path) -> None:
    engine, ema = made(ranks, 3), Ema(0.5)
    ema.start(engine.slices())
    saver = Checkpoints(tmp_path, ranks, 3, print)
    for number in (1, 2):
        step(number, engine, ema, saver)
    assert saver.buffers is not None
    saver.buffers.begin()  # the memory is there
    torch.cuda.set_sync_debug_mode("error")
    try:
        saver.save(engine, replace(STATE, step=2, world=1), ema, "x: 1\n")
        saver.before_update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ema.slices = {name: value + 1 for name, value in ema.slices.items()}
    saver.finish()
    assert checkpoint_folders.newest(tmp_path / "checkpoints", print) is not None
