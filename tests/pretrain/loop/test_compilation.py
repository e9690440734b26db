"""Where compiled kernels are kept, and what is said of a compilation."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from pretrain.loop.compilation import Compilations, use_cache
from pretrain.model import fused_ops

KIND = torch.backends.cpu.get_cpu_capability().lower()
VERSION = f"torch-{torch.__version__}-python-{sys.version_info.major}.{sys.version_info.minor}-{KIND}"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo and its guards without a compiler behind them."""
    monkeypatch.setattr(fused_ops, "BACKEND", "eager")
    fused_ops.compiled.cache_clear()
    torch._dynamo.reset()
    yield
    fused_ops.compiled.cache_clear()
    torch._dynamo.reset()


def test_kernels_of_another_version_stay_and_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    use_cache(tmp_path / "compiled", True, said.append)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere" and not (tmp_path / "compiled").exists()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    use_cache(tmp_path / "compiled", True, said.append)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled" / VERSION) and said == []
    old = tmp_path / "other" / "torch-2.9.0-python-3.11"
    old.mkdir(parents=True)
    (old / "kernel").write_text("kept")
    for _ in range(2):  # it is said once
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        use_cache(tmp_path / "other", True, said.append)
    assert len(said) == 1 and "kernels of torch-2.9.0-python-3.11 are kept" in said[0] and VERSION in said[0]
    assert (old / "kernel").read_text() == "kept" and (tmp_path / "other" / VERSION).is_dir()


def test_compilations_are_counted_with_their_reason(no_compiler: None) -> None:
    def twice(x: Tensor) -> Tensor:
        return x + x

    counted, idle = Compilations(active=True), Compilations(active=False)
    function = fused_ops.compiled(twice)
    for length in (5, 6, 7):
        given = torch.ones(length)
        fused_ops.any_length(given)
        function(given)
    (first,) = counted.new()
    assert first.startswith("twice (") and "anew" not in first
    assert counted.new() == []
    function(torch.ones(5, dtype=torch.float64))
    (second,) = counted.new()
    assert "anew because" in second and "dtype" in second
    assert idle.new() == []


def test_more_variants_than_expected_are_an_error(no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_ops, "VARIANTS", 2)

    def thrice(x: Tensor) -> Tensor:
        return x * 3

    function = fused_ops.compiled(thrice)
    for dtype in (torch.float32, torch.float64):
        function(torch.ones(2, dtype=dtype))
    with pytest.raises(FailOnRecompileLimitHit):
        function(torch.ones(2, dtype=torch.bfloat16))


def test_a_choice_left_open_follows_the_device() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [fused_ops.compiles(choice, device) for choice in ("auto", True, False) for device in (gpu, cpu)] == [
        True, False, True, True, False, False,
    ]  # fmt: skip


def test_kernels_of_another_kind_of_cpu_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder is shared by hosts; kernels compiled with AVX512 gave wrong numbers where torch kept to AVX2."""
    places = set()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")  # so that what use_cache sets goes with the test
    for kind in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=kind: kind)
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        use_cache(tmp_path / "compiled", True, print)
        places.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert len(places) == 2
