"""Recorded clips: the same bits as step by step, and only the latest shapes are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pretrain.sampling import clip_graphs
from pretrain.sampling.clip_graphs import ClipGraphs
from pretrain.sampling.clip_state import ClipShape, ClipState
from pretrain.sampling.sampler import SampleError
from tests.pretrain.sampling.test_clip_state import GUIDED, LONG, PLAIN, SPEC, sampler


def test_the_shape_not_used_for_the_longest_time_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, recorded = sampler(), []
    monkeypatch.setattr(clip_graphs, "RecordedClip", lambda state, say: (say("recorded"), state)[1])
    graphs = ClipGraphs()

    def ask(captions: int) -> None:
        shape = ClipShape(captions, captions, 32, 2, SPEC.scales(2, 2), 0, 0)
        made = graphs.get(shape, lambda: ClipState(ours.model, PLAIN, shape), lambda note: recorded.append(captions))
        assert made.shape == shape  # type: ignore[attr-defined]

    for captions in (1, 2, 3, 4, 1, 5, 1, 2):
        ask(captions)
    assert recorded == [1, 2, 3, 4, 5, 2]


def test_too_little_memory_for_a_recording_is_a_line_that_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: ClipState, say: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    ours = sampler()
    monkeypatch.setattr(clip_graphs, "RecordedClip", full)
    shape = ClipShape(3, 6, 32, 2, SPEC.scales(2, 2), 0, 0)
    with pytest.raises(SampleError, match=r"too little GPU memory to record 3 clips of 2 .*sample\.cuda_graphs=false"):
        ours._recorded(ClipGraphs(), shape, None)


def test_on_a_cpu_the_steps_run_from_python() -> None:
    ours = replace(sampler(), graphs=ClipGraphs())
    assert torch.equal(ours.sample(["x"], (3, 4, 4), seed=1), sampler().sample(["x"], (3, 4, 4), seed=1))


@pytest.mark.gpu
@pytest.mark.parametrize(("compile", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_graphs_give_the_bits_of_the_steps(compile: bool, dtype: torch.dtype) -> None:
    """Guided or not, with prefix and window, a second request after the first, and with compiled blocks."""
    for config, known, window in ((GUIDED, 0, 0), (GUIDED, 2, 1), (PLAIN, 0, 2)):
        eager = sampler(config, compile=compile, width=128)
        eager.model.to("cuda", dtype).eval()
        ours = replace(eager, graphs=ClipGraphs())
        for captions, seed in ((["a cat", LONG], 1), (["a whale in the sea, seen from above", ""], 2), (["a cat", LONG], 1)):
            prefix = torch.full((2, known * SPEC.frame_bytes(8, 8)), 37 * seed, dtype=torch.uint8) if known else None
            given = {"seed": seed, "prefix": prefix, "window": window}
            expected = eager.sample(captions, (5, 8, 8), **given)
            assert torch.equal(ours.sample(captions, (5, 8, 8), **given), expected)
