"""The plan's integers: every allowed pair once, nothing else, and no tensor that grows with the square of the length."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pretrain.model.attention import Mask
from pretrain.model.token_layout import Layout
from pretrain.model.varlen_plan import Part, Run, VarlenPlan, make_plan, runs
from tests.helpers.masks import LAYOUT, MASKS, real_tokens
from tokenizer.quantization.scale_schedule import scales

CPU = torch.device("cpu")


def _plan(mask: Mask) -> VarlenPlan:
    hidden = None if mask.hidden is None else mask.hidden.tolist()
    return make_plan(mask.documents, mask.text_length.tolist(), mask.window, hidden, mask.padding, CPU)


def _add(seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, part: Part | None, plan: VarlenPlan) -> None:
    q_begins = (plan.causal if part is None else part.q_segments).begins.tolist()
    k_begins = (plan.causal if part is None else part.k_segments).begins.tolist()
    for (a, b), (c, d) in zip(pairwise(q_begins), pairwise(k_begins), strict=True):
        pairs = torch.ones(b - a, d - c, dtype=torch.int64)
        if part is None or part.causal:
            pairs = pairs.tril()
        seen[q[a:b].unsqueeze(1), k[c:d]] += pairs


@pytest.mark.parametrize("name", MASKS)
def test_the_parts_cover_each_pair_of_the_brute_force_mask_once(name: str) -> None:
    mask = MASKS[name]
    plan = _plan(mask)
    seen = torch.zeros(plan.tokens, plan.tokens, dtype=torch.int64)
    everything = torch.arange(plan.tokens)
    _add(seen, everything, everything, None, plan)
    for part in (plan.own_scale, plan.history):
        if part is not None:
            _add(seen, part.q.long(), part.k.long(), part, plan)
    wanted = torch.block_diag(*mask.dense()[:, 0].long())
    real = real_tokens(mask).flatten()
    assert torch.equal(seen[real], wanted[real])
    assert seen.max() == 1 and bool((seen.diagonal() == 1).all())


@pytest.mark.parametrize("name", MASKS)
def test_the_places_are_the_inverse_of_the_gathered_tokens(name: str) -> None:
    plan = _plan(MASKS[name])
    for part in (plan.own_scale, plan.history):
        if part is None:
            continue
        for gathered, places in ((part.q, part.q_place.unsqueeze(0)), (part.k, part.k_places)):
            for token in range(plan.tokens):
                at = [p for p in places[:, token].tolist() if p < len(gathered)]
                assert at == (gathered == token).nonzero().flatten().tolist()


def test_a_document_without_a_gap_is_one_run() -> None:
    assert runs(LAYOUT, 10, 3, 0, ()) == [Run((10, 10 + LAYOUT.length))]
    assert runs(LAYOUT, 0, 3, 4, (False,) * 4) == [Run((0, LAYOUT.length))]


def test_a_hidden_frame_ends_a_run_and_the_next_sees_what_is_left() -> None:
    frame = LAYOUT.frame
    assert runs(LAYOUT, 0, 3, 0, (False, True, False, False)) == [
        Run((0, 3 + 2 * frame)),
        Run((3 + 2 * frame, 3 + 4 * frame), ((0, 3), (3, 3 + frame))),
    ]


def test_an_equal_mask_gives_the_same_plan_without_building_it_again() -> None:
    assert _plan(MASKS["all"]) is _plan(MASKS["all"])


def test_memory_is_linear_in_the_length() -> None:
    """33 frames of 384 x 672, twice over: 44,676 tokens; the mask of L x L took 24 GB."""
    layout = Layout(512, 17, scales(24, 42))
    plan = make_plan((layout,), [[512]], 8, [[[frame % 5 == 2 for frame in range(17)]]], 0, CPU)
    assert plan.tokens > 44_000
    assert plan.largest < 64 * 2**20
