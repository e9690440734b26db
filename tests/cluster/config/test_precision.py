"""The rule of `dtype: auto` on hardware that is stood in for, what is recorded, and the real CPU held down to AVX2."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from cluster.config import precision
from cluster.config.precision import DtypeError, Hardware, hardware, require, settle

OLD = Hardware("AVX2 CPU", "cpu", False, "no AVX512-BF16, AMX or ARM BF16")
NEW = Hardware("AVX512 CPU", "cpu", True, "AVX512-BF16")


def pretend(
    monkeypatch: pytest.MonkeyPatch, machine: str, level: str, *, bf16: bool, amx: bool = False, onednn: bool = True
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(precision, "_onednn_bfloat16", lambda: onednn)


@pytest.mark.parametrize(
    ("machine", "level", "bf16", "amx", "onednn", "expected"),
    [
        ("x86_64", "AVX512", True, False, True, "AVX512-BF16"),
        ("x86_64", "AVX512", True, True, True, "AMX"),
        ("x86_64", "AVX512", False, False, True, ""),  # Skylake: oneDNN emulates it
        ("x86_64", "AVX2", True, True, True, ""),  # held down by ATEN_CPU_CAPABILITY
        ("x86_64", "AVX512", True, True, False, ""),  # held down by ONEDNN_MAX_CPU_ISA
        ("x86_64", "AVX2", False, False, False, ""),
        ("aarch64", "DEFAULT", False, False, True, "ARM BF16"),
        ("aarch64", "DEFAULT", False, False, False, ""),
    ],
)
def test_cpus(
    monkeypatch: pytest.MonkeyPatch, machine: str, level: str, bf16: bool, amx: bool, onednn: bool, expected: str
) -> None:
    pretend(monkeypatch, machine, level, bf16=bf16, amx=amx, onednn=onednn)
    found = hardware("cpu")
    made = settle("train.dtype", "auto", [found])
    assert found.bfloat16 == bool(expected) and made.dtype == ("bfloat16" if expected else "float32")
    assert found.why == expected or (not expected and found.why.startswith("no "))
    assert found.why in made.line and not made.warning


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 0), "float32"), ((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_gpus(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    made = settle("train.dtype", "auto", [hardware("cuda")])
    assert made.dtype == dtype and made.line.startswith(f"train.dtype: {dtype} (auto: a GPU, CUDA capability {capability[0]}.")


def test_one_rank_without_it_gives_all_float32() -> None:
    assert settle("d", "auto", [NEW, OLD]).dtype == "float32"
    assert settle("d", "auto", [NEW, NEW]).dtype == "bfloat16"


def test_what_is_recorded_holds_on_hardware_that_has_more() -> None:
    made = settle("train.dtype", "auto", [NEW], recorded="float32")
    assert made.dtype == "float32" and made.line == "train.dtype: float32 (recorded; AVX512 CPU also has bfloat16)"


def test_recorded_bfloat16_on_hardware_without_it_needs_to_be_told() -> None:
    with pytest.raises(DtypeError) as caught:
        settle("train.dtype", "auto", [NEW, OLD], recorded="bfloat16")
    line = str(caught.value)
    assert "\n" not in line and "90 times slower" in line and "cluster.accept_slow_dtype=true" in line and "AVX2 CPU" in line
    made = settle("train.dtype", "auto", [OLD], recorded="bfloat16", accept=True)
    assert made.dtype == "bfloat16" and "90 times slower" in made.line


def test_an_explicit_type_is_taken_and_warned_about() -> None:
    made = settle("train.dtype", "bfloat16", [OLD])
    assert made.dtype == "bfloat16" and "WARNING" in made.line and "90 times slower" in made.line
    assert not settle("train.dtype", "bfloat16", [NEW]).warning
    assert not settle("train.dtype", "float32", [OLD]).warning
    assert "it was bfloat16 until now" in settle("train.dtype", "float32", [OLD], recorded="bfloat16").line


def test_a_further_worker_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "x86_64", "AVX2", bf16=False, onednn=False)
    assert require("pipeline.dtype", "float32", "cpu") == ""
    with pytest.raises(DtypeError, match=r"pipeline\.dtype: bfloat16 is recorded, and .* emulates it, about 90 times slower"):
        require("pipeline.dtype", "bfloat16", "cpu")
    assert "90 times slower" in require("pipeline.dtype", "bfloat16", "cpu", accept=True)
    pretend(monkeypatch, "x86_64", "AVX512", bf16=True)
    assert require("pipeline.dtype", "bfloat16", "cpu") == ""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="holds an x86 CPU down to AVX2")
def test_a_real_cpu_held_down_to_avx2_has_no_bfloat16() -> None:
    held = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "cluster.config.precision"]
    done = subprocess.run(words, capture_output=True, text=True, env=held, check=True, timeout=120)
    assert done.stdout.startswith("AVX2 CPU, no AVX512-BF16, AMX or ARM BF16: auto is float32; GFLOP/s: float32 ")
