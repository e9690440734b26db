"""Sequence parallelism: two ranks over gloo compute what one computes alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.runtime.process_group import Ranks
from pretrain.data.config import Mix, Stage
from pretrain.data.curriculum import CurriculumError
from pretrain.objective.sequence_parallel import SequenceGroup, SequenceGroups, SequenceShare
from tests.helpers import ulysses_worker


def test_ranks_that_share_sequences_compute_what_one_computes(root: Path, tmp_path: Path) -> None:
    world = 2
    command = [sys.executable, "-m", "tests.helpers.ulysses_worker"]
    store, out = tmp_path / "store", tmp_path / "out.safetensors"
    jobs = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(store), str(out)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    said = [job.communicate(timeout=120)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * world, said
    shared, alone = load_file(out), ulysses_worker.results(None)
    assert set(shared) == set(alone)
    for name, value in alone.items():
        close = 3e-2 if name.startswith("bfloat16") else 1e-5
        scale = max(1e-3, float(value.abs().max()))
        assert float((shared[name] - value).abs().max()) <= close * scale, name
    # A rank's tokens are not the whole: what was compared is a sum of parts.
    assert all(float(alone[f"{case}/loss"]) > 0.1 for case in ulysses_worker.CASES)


def test_a_share_cuts_rows_evenly_and_pads_the_last() -> None:
    rows = torch.arange(22).view(2, 11, 1)
    shares = [SequenceShare(SequenceGroup(4, index, None), 11) for index in range(4)]
    parts = [share.cut(rows) for share in shares]
    assert [part.shape for part in parts] == [(2, 3, 1)] * 4
    joined = torch.cat(parts, dim=1)
    assert torch.equal(joined[:, :11], rows) and not joined[:, 11:].any()
    place, row = torch.tensor([[2, 3, 10], [4, 9, 10]]), torch.tensor([[0, 0, 0], [1, 1, 1]])
    inside, at = shares[1].mine(place, row)
    assert inside.tolist() == [[False, True, False], [True, False, False]]
    assert parts[1].flatten()[at].tolist() == [3, 15]


def test_heads_must_divide_among_the_ranks_of_a_sequence() -> None:
    stage = Stage(name="long", steps=1, mix=(Mix(bucket="f005x64x64", batch=3),), sequence_parallel=4)
    alone = Ranks(0, 1, torch.device("cpu"), ("here",))
    assert SequenceGroups(alone, (stage,), 8, 60.0).of(stage) is None
    with pytest.raises(CurriculumError, match=r"stage long: sequence_parallel 4 does not divide model\.heads 6"):
        SequenceGroups(alone, (stage,), 6, 60.0)
