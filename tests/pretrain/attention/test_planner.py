"""The plan's integers: every allowed pair once, nothing else, and no tensor that grows with the square of the length."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pretrain.attention.attention import Mask
from pretrain.attention.planner import make_plan
from pretrain.attention.token_layout import Layout
from pretrain.attention.varlen_plan import LONG_MULTIPLE, TILE, Segments, VarlenPlan
from tests.helpers.masks import LAYOUT, MASKS, real_tokens
from tokenizer.quantization.scale_schedule import scales

CPU = torch.device("cpu")
LARGE = Mask((Layout(5, 4, scales(12, 16)),), torch.tensor([[5], [3]]), 2, torch.arange(8).view(2, 1, 4) % 3 == 1, 7)
ALL = {**MASKS, "large": LARGE}


def _plan(mask: Mask, long: int = 0) -> VarlenPlan:
    hidden = None if mask.hidden is None else mask.hidden.tolist()
    return make_plan(mask.documents, mask.text_length.tolist(), mask.window, hidden, mask.padding, CPU, long)


def _add(seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, segments: tuple[Segments, Segments]) -> None:
    for (a, b), (c, d) in zip(*(pairwise(each.begins.tolist()) for each in segments), strict=True):
        seen[q[a:b].unsqueeze(1), k[c:d]] += torch.ones(b - a, d - c, dtype=torch.int64).tril(d - c - b + a)


def _seen(plan: VarlenPlan, tokens: int) -> torch.Tensor:
    """How often each pair is computed, tokens in the plan's order."""
    seen = torch.zeros(tokens, tokens, dtype=torch.int64)
    everything = torch.arange(tokens)
    at = 0
    for call in plan.calls:
        assert call.begin == at
        at = call.end
        here = everything[call.begin : call.end]
        segments = call.segments or Segments(torch.tensor([0, len(here)]), len(here))
        _add(seen, here, here, (segments, segments))
    if plan.frames is not None:
        assert plan.frames.begin == at
        _add(seen, everything[at:], plan.frames.keys.long(), (plan.frames.q_segments, plan.frames.k_segments))
    for first, begin, end in plan.tiles.tolist():
        rows = everything[first : min(first + TILE, end)]
        keys = everything[begin:end]
        seen[rows.unsqueeze(1), keys] += (keys > rows.unsqueeze(1)).long()
    return seen


@pytest.mark.parametrize("long", [0, 20])
@pytest.mark.parametrize("name", ALL)
def test_the_parts_cover_each_pair_of_the_brute_force_mask_once(name: str, long: int) -> None:
    mask = ALL[name]
    plan = _plan(mask, long)
    tokens = mask.length * len(mask.text_length)
    seen = _seen(plan, tokens)
    wanted = torch.block_diag(*mask.dense()[:, 0].long())
    real = real_tokens(mask).flatten()
    if plan.order is not None and plan.place is not None:
        assert torch.equal(plan.order[plan.place.long()], torch.arange(tokens, dtype=torch.int32))
        seen = seen[plan.place.long()][:, plan.place.long()]
    assert torch.equal(seen[real], wanted[real])
    assert seen.max() == 1 and bool((seen.diagonal() == 1).all())
    assert long or all(call.segments is not None for call in plan.calls)


@pytest.mark.parametrize("name", ALL)
def test_the_shares_hold_each_gathered_key_once_and_no_token_twice(name: str) -> None:
    frames = _plan(ALL[name]).frames
    if frames is None:
        assert ALL[name].hidden is None
        assert all(layout.frames <= ALL[name].window + 1 or not ALL[name].window for layout in ALL[name].documents)
        return
    places = torch.cat([at for at, _ in frames.shares])
    assert torch.equal(places.sort().values, torch.arange(len(frames.keys), dtype=torch.int32))
    for at, tokens in frames.shares:
        assert torch.equal(frames.keys[at.long()], tokens)
        assert len(tokens.unique()) == len(tokens)


def test_a_document_without_a_gap_is_one_run_in_its_own_order() -> None:
    for window in (0, 3):
        plan = make_plan((LAYOUT,), [[3]], window, [[[False] * 4]], 0, CPU)
        assert plan.order is None and plan.frames is None
        assert [(call.begin, call.end) for call in plan.calls] == [(0, LAYOUT.length)]


def test_only_hidden_frames_leave_the_run() -> None:
    frame, text = LAYOUT.frame, LAYOUT.text
    plan = make_plan((LAYOUT,), [[3]], 0, [[[False, True, False, False]]], 0, CPU)
    assert plan.order is not None and plan.frames is not None
    assert plan.order.tolist()[-frame:] == list(range(text + frame, text + 2 * frame))
    assert [(call.begin, call.end) for call in plan.calls] == [(0, LAYOUT.length - frame)]
    assert plan.frames.k_segments.longest == text + 2 * frame


def test_long_runs_are_calls_of_their_own_between_the_short_ones() -> None:
    documents = tuple(Layout(2, frames, ((1, 1), (2, 2))) for frames in (1, 5, 1, 1))
    plan = make_plan(documents, [[2] * 4], 0, None, 0, CPU, long=20)
    assert [(call.begin, call.end, call.segments is None) for call in plan.calls] == [
        (0, 7, False),
        (7, 34, True),
        (34, 48, False),
    ]


def test_an_equal_mask_gives_the_same_plan_without_building_it_again() -> None:
    assert _plan(MASKS["all"]) is _plan(MASKS["all"])


def test_memory_is_linear_in_the_length() -> None:
    """33 frames of 384 x 672, twice over: 44,676 tokens; the mask of L x L took 24 GB."""
    layout = Layout(512, 17, scales(24, 42))
    plan = make_plan((layout,), [[512]], 8, [[[frame % 5 == 2 for frame in range(17)]]], 0, CPU)
    assert layout.length > 44_000
    assert plan.nbytes < 64 * 2**20


def test_padding_fills_long_runs_to_few_lengths() -> None:
    """Two documents of 4,352 video tokens a row, with all kinds of text and hidden frames: cuDNN meets few lengths."""
    scales_, row = ((4, 4), (16, 16)), 9344
    found = set()
    for text in range(1, 200, 7):
        for hidden in (0, 1, 2):
            spans = (text, 200 - text)
            documents = tuple(Layout(span, 16, scales_) for span in spans)
            padding = row - sum(document.length for document in documents)
            hides = [[[frame < hidden for frame in range(16)]] * 2]
            plan = make_plan(documents, [list(spans)], 0, hides, padding, CPU, long=2000)
            assert sum(call.end - call.begin for call in plan.calls) + 2 * hidden * 272 == row
            assert len(plan.calls) == 2 and all(call.segments is None for call in plan.calls)
            first, last = (call.end - call.begin for call in plan.calls)
            assert first % LONG_MULTIPLE == 0
            found |= {first, last}
    assert len(found) <= 16, found


def test_padding_that_does_not_suffice_is_used_as_far_as_it_goes() -> None:
    documents = (LAYOUT, LAYOUT)
    plan = make_plan(documents, [[LAYOUT.text] * 2], 0, None, 3, CPU, long=20)
    assert [call.end - call.begin for call in plan.calls] == [LAYOUT.length + 3, LAYOUT.length]
