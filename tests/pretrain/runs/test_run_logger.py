"""What a run tells, parameter groups, FLOPs, stop requests."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import urllib.request
from pathlib import Path

import pytest
import torch

from cluster.config import MetricsConfig
from cluster.metrics import MetricsPortError, StepReport
from cluster.runtime.process_group import Ranks
from pretrain.engine.config import TrainConfig
from pretrain.engine.optimizer import adamw, groups, mark_muon
from pretrain.estimate import flops, hardware
from pretrain.loop.preemption import StopRequest
from pretrain.loop.step_metrics import Clock, Figures
from pretrain.model.attention import Mask
from pretrain.model.config import ModelConfig
from pretrain.model.token_layout import Layout
from pretrain.model.transformer import VideoAR
from pretrain.runs.run_logger import Journal

REPORT = StepReport(
    step=3,
    stage=0,
    stage_name="low",
    bucket="f009x32x32",
    loss=0.5,
    scale_loss={"1x1": 0.4, "2x2": 0.6},
    bit_accuracy={"1x1": 0.7, "2x2": 0.6},
    grad_norm=math.nan,
    learning_rate=1e-3,
    tokens=1000,
    seconds={"total": 0.5, "data": 0.01},
    memory={"resident": 5},
    skipped="nonfinite_loss",
    sample_ids=["a", "b"],
    mfu=0.25,
)


def test_rank_0_writes_lines_and_serves_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path, 0, MetricsConfig(port=0), log_every=1, tensorboard=False) as journal:
        journal.step(REPORT, 10, 2)
        address = (tmp_path / "metrics-address").read_text().strip()
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            served = answer.read().decode()
    said = capsys.readouterr().out
    assert "step 3/10 low f009x32x32 loss 0.50000" in said and "2,000 tok/s" in said and "SKIPPED (nonfinite_loss)" in said
    assert "videoar_train_step 3.0" in served and 'videoar_train_skipped_steps_total{reason="nonfinite_loss"} 1.0' in served
    assert served.count("videoar_train_heartbeat_timestamp_seconds{") == 2
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["loss"] == 0.5 and line["grad_norm"] is None and line["sample_ids"] == ["a", "b"]
    assert "step 3/10" in (tmp_path / "log" / "rank-0.log").read_text()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MetricsPortError, match=f"metrics port 127.0.0.1:{port}: .*set metrics.port"):
            Journal(tmp_path, 0, MetricsConfig(port=port), log_every=1, tensorboard=False)


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path / "run", 1, MetricsConfig(port=0), log_every=1, tensorboard=True) as journal:
        journal.say("words")
        journal.step(REPORT, 10, 2)
        journal.values(3, {"validation/x": 0.1})
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()


def test_weight_decay_takes_matrices_only() -> None:
    model = VideoAR(ModelConfig(layers=2, width=32, heads=2), 16, 256)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in groups(model, 0.05))
    assert len(decayed) + len(plain) == len(names)
    assert "head.weight" in decayed and "blocks.0.attention.qkv.weight" in decayed and "word.weight" in decayed
    assert {"text.weight", "scale.weight", "start.weight", "norm.weight", "head.bias"} <= set(plain)
    assert [group["weight_decay"] for group in adamw(model, TrainConfig(weight_decay=0.2)).param_groups] == [0.2, 0.0]
    mark_muon(model.named_parameters())
    muon = {name for name, parameter in model.named_parameters() if parameter.use_muon}  # type: ignore[attr-defined]
    assert muon == {name for name in decayed if name.startswith("blocks.")}


@pytest.mark.parametrize("window", [0, 1, 2])
def test_attended_pairs_are_those_of_the_mask(window: int) -> None:
    layout = Layout(5, 4, ((1, 1), (2, 2), (3, 3)))
    mask = Mask((layout,), torch.tensor([[5]]), window).dense()
    assert flops.causal_pairs(5, 4, [1, 4, 9], window) == int(mask.sum())


def test_flops_and_peak() -> None:
    # One matrix of 10 parameters, 7 tokens: 2 forward and 4 backward each; attention: 4 FLOPs a pair a width, times 3.
    assert flops.training_flops(10, 7, 0, 0, 0) == 420
    assert flops.training_flops(0, 0, 2, 8, 5) == 960
    torch.set_num_threads(1)
    assert 1e8 < hardware.peak_flops(torch.device("cpu"), torch.float32, 1) < 1e13


def test_figures_keep_flags_and_vectors_apart() -> None:
    ranks = Ranks(rank=0, world=1, device=torch.device("cpu"), hosts=("here",))
    totals = {"loss": torch.tensor(0.25), "scale_loss": torch.tensor([1.0, 2.0])}
    found = Figures.summed(totals, (3.0, 0.0, 1.0), ranks)
    assert found.loss == 0.25 and found.values["scale_loss"] == [1.0, 2.0] and found.flags == (3.0, 0.0, 1.0)


def test_clock_books_all_time_to_phases() -> None:
    clock = Clock()
    clock.mark("data")
    clock.mark("forward")
    clock.mark("data")
    seconds = clock.end()
    assert set(seconds) == {"total", "data", "forward"}
    assert seconds["data"] + seconds["forward"] <= seconds["total"]


def test_stop_requests(tmp_path: Path) -> None:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = StopRequest(tmp_path, stop_after=5)
        assert not stop.asked(4)
        assert stop.asked(5) and stop.reason == "train.stop_after=5"
        stop = StopRequest(tmp_path, stop_after=0)
        assert not stop.asked(10**6)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked(1) and stop.reason == "SIGTERM"
        stop = StopRequest(tmp_path, stop_after=0)
        (tmp_path / "stop").touch()
        assert stop.asked(1) and stop.reason.endswith("stop")
        stop.clear()
        assert not (tmp_path / "stop").exists()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
