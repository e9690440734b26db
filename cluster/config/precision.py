"""The rule of `dtype: auto`, once for every section that has a dtype: bfloat16 where the hardware computes it, else float32.

In:  the type that is asked for (auto, float32, bfloat16), the device, and the type that a run or a folder has recorded.
Out: a `Precision`: the type, why, and whether the hardware lacks it; or a `DtypeError` of one line with the mend.

What is recorded wins over the rule, so that bytes and resumes do not follow the hardware. float16 is never chosen.
`python -m cluster.config.precision` prints type and measured speed of this host.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cluster.config.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16"]
"""Values of a `dtype` key."""
ACCEPT = "cluster.accept_slow_dtype"
"""The key that lets a job go on in a recorded type that its hardware lacks."""
SLOWER = {"cpu": "about 90 times slower than float32 on a CPU with AVX2", "cuda": "several times slower than float32"}
"""What bfloat16 costs where it is emulated, by kind of device. Measured for AVX2: products of 512 x 512 matrices and 3D convolutions."""


class DtypeError(ConfigError):
    """A recorded type that this hardware lacks; the message names both, the cost and the mend."""


@dataclass(frozen=True)
class Hardware:
    """What a device is and whether it computes bfloat16 itself."""

    name: str
    kind: str
    """cpu or cuda."""
    bfloat16: bool
    why: str
    """The feature that decides, such as `AVX512-BF16` or `no AVX512-BF16, AMX or ARM BF16`."""


@dataclass(frozen=True)
class Precision:
    """A type that has been settled."""

    key: str
    """Name of the key, such as train.dtype."""
    dtype: Literal["float32", "bfloat16"]
    reason: str
    warning: str = ""
    """What it costs, if this hardware lacks the type."""

    @property
    def line(self) -> str:
        """What a job prints at its start."""
        return f"{self.key}: {self.dtype} ({self.reason})" + (f"; WARNING: {self.warning}" if self.warning else "")


def hardware(device: str) -> Hardware:
    """Look at a device, `cpu` or `cuda`. It imports torch."""
    import torch

    if device.startswith("cuda"):
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        return Hardware(name, "cuda", major >= 8, f"CUDA capability {major}.{minor}")
    # torch and oneDNN can be held below what the CPU has (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA); both must have it.
    level = torch.backends.cpu.get_cpu_capability()
    used = _onednn_bfloat16()
    if platform.machine().lower() in ("aarch64", "arm64"):
        # On ARM, oneDNN reports bfloat16 only where the CPU has its instructions.
        return Hardware(f"{level} CPU", "cpu", used, "ARM BF16" if used else "no ARM BF16")
    for name, probe in (("AMX", "_is_amx_tile_supported"), ("AVX512-BF16", "_is_avx512_bf16_supported")):
        if getattr(torch.cpu, probe)() and used and level not in ("DEFAULT", "AVX2"):
            return Hardware(f"{level} CPU", "cpu", True, name)
    return Hardware(f"{level} CPU", "cpu", False, "no AVX512-BF16, AMX or ARM BF16")


def _onednn_bfloat16() -> bool:
    """Return whether oneDNN computes in bfloat16 here, in hardware or not."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 -- torch has no public name for it


def settle(key: str, wanted: Dtype, found: Iterable[Hardware], *, recorded: str = "", accept: bool = False) -> Precision:
    """Settle a type for devices that work together.

    key: for messages. wanted: value of the key. found: hardware of each rank or host. recorded: type with which the run or folder
    was begun; it holds where the key says auto. accept: go on in a recorded type that the hardware lacks.
    Raises DtypeError for a recorded type that some of the hardware lacks.
    """
    every = list(found)
    lacking = next((each for each in every if not each.bfloat16), None)
    if wanted != "auto" and recorded in ("", wanted):
        return Precision(key, wanted, "as configured", _cost(lacking) if wanted == "bfloat16" else "")
    if wanted != "auto":
        note = f"as configured; it was {recorded} until now"
        return Precision(key, wanted, note, _cost(lacking) if wanted == "bfloat16" else "")
    if recorded:
        chosen: Literal["float32", "bfloat16"] = "bfloat16" if recorded == "bfloat16" else "float32"
        if chosen == "bfloat16" and lacking is not None:
            if not accept:
                raise DtypeError(lacks(key, lacking))
            return Precision(key, chosen, "recorded", _cost(lacking))
        more = chosen == "float32" and every and lacking is None
        return Precision(key, chosen, "recorded" + (f"; {every[0].name} also has bfloat16" if more else ""))
    if lacking is not None:
        return Precision(key, "float32", f"auto: {lacking.name}, {lacking.why}")
    return Precision(key, "bfloat16", "auto: " + (f"{every[0].name}, {every[0].why}" if every else "GPUs of the workers"))


def require(key: str, dtype: str, device: str, *, accept: bool = False) -> str:
    """Check on a further host that it has the job's type; return a warning, or an empty text. Raises DtypeError.

    accept: go on without it.
    """
    found = hardware(device)
    if dtype != "bfloat16" or found.bfloat16:
        return ""
    if not accept:
        raise DtypeError(lacks(key, found))
    return _cost(found)


def lacks(key: str, found: Hardware) -> str:
    """Return the line for a recorded bfloat16 that `found` lacks."""
    return (
        f"{key}: bfloat16 is recorded, and {platform.node()} ({found.name}, {found.why}) only emulates it, {SLOWER[found.kind]}; "
        f"use hardware that has it, or go on with {ACCEPT}=true"
    )


def _cost(found: Hardware | None) -> str:
    return "" if found is None else f"{found.name} has {found.why} and emulates bfloat16, {SLOWER[found.kind]}"


def default_device() -> str:
    """Return `cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def speed(device: str, dtype: str, side: int = 512, seconds: float = 0.2) -> float:
    """Measure products of square matrices, in GFLOP/s."""
    import torch

    side = side if device == "cpu" else 4096
    left = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    wait = torch.cuda.synchronize if device != "cpu" else (lambda: None)
    left @ left
    wait()
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds or not count:
        left @ left
        wait()
        count += 1
    return 2 * side**3 * count / passed / 1e9


def describe(device: str = "") -> str:
    """Return in one line what this host has: hardware, the type of `auto`, and the measured speed of both types."""
    place = device or default_device()
    found = hardware(place)
    chosen = settle("dtype", "auto", [found]).dtype
    rates = ", ".join(f"{name} {speed(place, name):,.0f}" for name in ("float32", "bfloat16"))
    return f"{found.name}, {found.why}: auto is {chosen}; GFLOP/s: {rates}"


if __name__ == "__main__":
    print(describe())
