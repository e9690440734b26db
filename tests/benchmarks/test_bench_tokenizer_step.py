"""The benchmark of a tokenizer's training step at a small shape: what it reports."""

from __future__ import annotations

import torch

from benchmarks.bench_tokenizer_step import measure


def test_it_reports_both_forms() -> None:
    torch.set_num_threads(1)
    row = measure(1, ((5, 32, 1),))
    assert {"name", "unit", "ours", "plain", "ratio", "limit", "limit_share"} <= set(row)
    assert isinstance(row["ours"], float) and row["ours"] > 0
    assert isinstance(row["one_of_two"], list) and len(row["one_of_two"]) == 1
