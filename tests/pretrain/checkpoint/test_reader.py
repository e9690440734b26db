"""Partitions of any ZeRO stage and any number of ranks joined to whole weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.runtime.process_group import Ranks
from pretrain.checkpoint.deepspeed_io import CheckpointError
from pretrain.checkpoint.reader import from_zero3, from_zero12, needs_universal, read_ema, read_weights
from tests.helpers.made_state import STATE

SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple), min_size=1, max_size=5)


@given(SHAPES, st.integers(1, 5))
def test_partitions_join_to_the_whole(shapes: list[tuple[int, ...]], world: int) -> None:
    named = {f"p{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    sizes = {name: tuple(value.shape) for name, value in named.items()}
    # ZeRO-3: ceil(n / W) of each parameter, padded.
    ranks = []
    for rank in range(world):
        parts = []
        for value in named.values():
            each = -(-value.numel() // world)
            padded = torch.cat([value.flatten(), torch.zeros(each * world - value.numel())])
            parts.append(padded[rank * each : (rank + 1) * each])
        ranks.append([torch.cat(parts[:1]), torch.cat(parts[1:])] if len(parts) > 1 else [parts[0]])
    found = from_zero3(sizes, ranks)
    assert all(torch.equal(found[name], value) for name, value in named.items())
    # ZeRO-1 and 2: one flat vector, cut into equal pieces, padded at the end.
    flat = torch.cat([value.flatten() for value in named.values()])
    padded = torch.cat([flat, torch.zeros(-flat.numel() % world)])
    found = from_zero12([sizes], [[piece] for piece in padded.chunk(world)], None)
    assert all(torch.equal(found[name], value) for name, value in named.items())


def test_too_few_elements_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the partitions hold 3 elements, the parameters need 4"):
        from_zero3({"a": (2, 2)}, [[torch.zeros(3)]])
    with pytest.raises(CheckpointError, match=r"train\.ema was 0"):
        read_ema(tmp_path, {})


def test_a_checkpoint_without_all_ranks_files_is_refused(tmp_path: Path) -> None:
    STATE.write(tmp_path / "state.json")
    with pytest.raises(CheckpointError, match="optimizer states of 0 ranks, but 2 ranks wrote the checkpoint"):
        read_weights(tmp_path)


def test_another_number_of_ranks_needs_the_universal_format_unless_nothing_is_partitioned() -> None:
    ranks = Ranks(rank=0, world=2, device=torch.device("cpu"), hosts=("here", "there"))
    assert not needs_universal(STATE, ranks)
    assert needs_universal(replace(STATE, world=3), ranks)
    assert not needs_universal(replace(STATE, world=3, zero_stage=0), ranks)
