"""The codec's benchmark at small shapes on a CPU: what `videoar bench gpu` reads of it, and that its plain form computes the same."""

from __future__ import annotations

import torch

from benchmarks.bench_codec import forms_of, gpu_codec, torch_norms
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network


def test_the_part_for_a_card_runs_dry() -> None:
    rows = gpu_codec("cpu", 1)
    assert [row["name"] for row in rows] == [
        "codec encode, 1 x 5 x 32 x 32",
        "codec decode, 1 x 5 x 32 x 32",
        "codec encode, 2 x 1 x 32 x 48",
        "codec decode, 2 x 1 x 32 x 48",
    ]
    for row in rows:
        assert {"value", "wanted", "at_most", "unit", "tflops", "with_torch_norms"} <= set(row)
        assert isinstance(row["value"], float) and row["value"] >= 0
    assert [row["wanted"] for row in rows[:2]] == [0.5, 0.55]


def test_the_plain_form_computes_the_same() -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig(bits=8, width=8, blocks=1, groups=4)).requires_grad_(False)
    video = torch.rand(1, 3, 5, 32, 32)
    ours = network.encoder(video)
    with torch_norms():
        plain = network.encoder(video)
    assert (ours - plain).abs().max() < 1e-5
    assert not torch.equal(ours, plain), "it is another form"


def test_the_forms_are_counted() -> None:
    network = Network(NetworkConfig(bits=8, width=8, blocks=1, groups=4)).requires_grad_(False)
    found = forms_of(lambda: network.encoder(torch.rand(1, 3, 5, 32, 32)))
    assert set(found) == {"product", "3d"} and found["3d"] > found["product"]
