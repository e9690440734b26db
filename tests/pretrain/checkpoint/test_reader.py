"""Checkpoint folders: pruning; partitions joined; exact EMA slices; engine settings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.runtime import checkpoint_folders
from cluster.runtime.process_group import Ranks
from pretrain.checkpoint.consolidate import WeightsError, from_zero3, from_zero12, read_ema
from pretrain.checkpoint.host_copy import copied, write_torch
from pretrain.checkpoint.writer import Checkpoints
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.deepspeed_config import OURS, EngineError, check_compiler, deepspeed_config
from pretrain.engine.ema import Ema, join, slice_of
from tests.helpers.made_state import STATE

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"), hosts=("here",))


def whole(run: Path, step: int, *, stage_ends: bool = False) -> Path:
    """A checkpoint folder as two ranks would leave it, published."""
    final = checkpoint_folders.folder_of(run / "checkpoints", step)
    partial = final.with_name(final.name + ".partial")
    (partial / "zero").mkdir(parents=True)
    for rank in range(2):
        path = partial / "zero" / f"rank{rank}.pt"
        _, size, digest = write_torch(path, {"weights": torch.arange(100.0) + rank})
        (partial / f"files-{rank:05d}.json").write_text(json.dumps({f"zero/{path.name}": {"size": size, "sha256": digest}}))
    replace(STATE, step=step, stage_ends=stage_ends).write(partial / "state.json")
    checkpoint_folders.publish(partial, final)
    return final


def test_pruning_keeps_the_newest_and_the_ends_of_stages(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        whole(tmp_path, step, stage_ends=step == 20)
    Checkpoints(tmp_path, ALONE, 2, print).prune()
    assert [path.name[-2:] for path in checkpoint_folders.listed(tmp_path / "checkpoints")] == ["50", "40", "20"]


def test_hashing_while_writing_gives_the_file_s_digest(tmp_path: Path) -> None:
    path, size, digest = write_torch(tmp_path / "a.pt", {"x": torch.randn(1000), "words": ["a", 1]})
    assert checkpoint_folders.hashed(path) == (path, size, digest)
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.load(path, weights_only=True)["x"])


def test_a_snapshot_does_not_follow_the_weights() -> None:
    live = torch.zeros(8)
    taken = copied({"a": [live, (live[2:4],)], "n": 3})
    live.add_(1)
    assert taken["n"] == 3 and taken["a"][0].sum() == 0
    assert taken["a"][1][0].untyped_storage().nbytes() == 8  # a view is copied alone, not with all it looks into


SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple), min_size=1, max_size=5)


@given(SHAPES, st.integers(1, 5))
def test_partitions_join_to_the_whole(shapes: list[tuple[int, ...]], world: int) -> None:
    named = {f"p{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    sizes = {name: tuple(value.shape) for name, value in named.items()}
    # ZeRO-3: ceil(n / W) of each parameter, padded; the moving average takes the same cut, unpadded.
    ranks, slices = [], []
    for rank in range(world):
        parts = []
        for value in named.values():
            each = -(-value.numel() // world)
            padded = torch.cat([value.flatten(), torch.zeros(each * world - value.numel())])
            parts.append(padded[rank * each : (rank + 1) * each])
        ranks.append([torch.cat(parts[:1]), torch.cat(parts[1:])] if len(parts) > 1 else [parts[0]])
        slices.append({name: slice_of(value.flatten(), rank, world) for name, value in named.items()})
    for found in (from_zero3(sizes, ranks), join(slices, sizes)):
        assert all(torch.equal(found[name], value) for name, value in named.items())
    # ZeRO-1 and 2: one flat vector, cut into equal pieces, padded at the end.
    flat = torch.cat([value.flatten() for value in named.values()])
    padded = torch.cat([flat, torch.zeros(-flat.numel() % world)])
    found = from_zero12([sizes], [[piece] for piece in padded.chunk(world)], None)
    assert all(torch.equal(found[name], value) for name, value in named.items())


def test_too_few_elements_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="the partitions hold 3 elements, the parameters 4"):
        from_zero3({"a": (2, 2)}, [[torch.zeros(3)]])
    with pytest.raises(WeightsError, match=r"train\.ema was 0"):
        read_ema(tmp_path, {})


def test_the_moving_average_moves_by_its_decay() -> None:
    ema = Ema(0.75)
    ema.start([("w", torch.tensor([1.0, 2.0], dtype=torch.bfloat16))])
    ema.update([("w", torch.tensor([5.0, 2.0], dtype=torch.bfloat16))])
    assert ema.slices["w"].tolist() == [2.0, 2.0] and ema.slices["w"].dtype == torch.float32


@pytest.mark.parametrize("key", OURS)
def test_keys_that_contradict_ours_are_errors(key: str) -> None:
    section = DeepSpeedConfig.model_validate({key: {}})
    with pytest.raises(EngineError, match=f"`deepspeed.{key}` contradicts") as caught:
        deepspeed_config(TrainConfig(), section, 2)
    assert OURS[key] in str(caught.value)


def test_deepspeed_s_own_keys_pass_and_ours_are_filled_in() -> None:
    section = DeepSpeedConfig.model_validate(
        {"zero_optimization": {"stage": 2, "overlap_comm": True}, "wall_clock_breakdown": True}
    )
    made = deepspeed_config(TrainConfig(clip=0.5), section, 8)
    assert made["zero_optimization"] == {"stage": 2, "overlap_comm": True} and made["wall_clock_breakdown"] is True
    assert made["train_batch_size"] == 8 and made["gradient_clipping"] == 0.5
    assert made["bf16"] == {"enabled": True} and made["data_types"] == {"grad_accum_dtype": "fp32"}
    for section_, train, words in (
        ({"zero_optimization": {"stage": 4}}, TrainConfig(), "is 4; ZeRO stages are 0, 1, 2 and 3"),
        ({"zero_optimization": {"stage": 0}}, TrainConfig(), r"train\.dtype=float32"),
        ({"zero_optimization": {"stage": 0}}, TrainConfig(dtype="float32", optimizer="muon"), "stage 1, 2 or 3"),
        ({"checkpoint": {"load_universal": True}}, TrainConfig(), r"deepspeed\.checkpoint\.load_universal"),
    ):
        with pytest.raises(EngineError, match=words):
            deepspeed_config(train, DeepSpeedConfig.model_validate(section_), 2)


def test_ranks_of_one_process_need_no_group() -> None:
    assert ALONE.all_gather(5) == [5] and ALONE.broadcast("x") == "x"
    assert math.isclose(float(ALONE.all_reduce(torch.tensor([1.5]))), 1.5)
    ALONE.barrier()


def test_compiling_without_a_compiler_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_compiler(False, cpu)
    check_compiler(True, torch.device("cuda"))
    with pytest.raises(EngineError, match=r"`no-such-compiler` is not there: install it, or set model\.compile=false"):
        check_compiler(True, cpu)
