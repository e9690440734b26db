"""The cases, in the order in which they run, and what each process runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu import job, kernels, results, shapes, steps
from benchmarks.gpu.bench import Bench, CannotMeasure, Figures
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR

SECTIONS = ("peak", "mask", "attention", "step", "job", "sample", "codec", "checkpoint")
SAMPLES = (
    ("L", 1, "graphs"),
    ("L", 16, "graphs"),
    ("L", 1, "compiled"),
    ("L", 1, "eager"),
    ("XL", 1, "graphs"),
    ("XL", 1, "compiled"),
)
"""Size, captions, way of benchmarks/sample_model.py."""
LATE = ("compiled", "eager")
"""Ways of sampling that are measured after all else, as is ZeRO-1: no bar speaks of them, and a time limit cuts the last."""
PRODUCT_TFLOPS = 785.0
"""Of an H100 or H200, where the case `peak` was left out."""


@dataclass(frozen=True)
class Case:
    """One measurement."""

    name: str
    section: str
    run: Callable[[Bench], list[Figures]]
    limit: float
    """Seconds after which it is ended."""
    process: str
    """Cases of the same name share a process; an engine needs one of its own, since it holds memory when it is gone."""


def cases(bench: Bench) -> list[Case]:
    """All of them, in the order of their worth."""
    found = [
        Case("peak", "peak", kernels.peak, 60, "kernels"),
        Case("mask", "mask", kernels.mask, 60, "kernels"),
        Case("attention", "attention", _attention, 120, "kernels"),
    ]
    found += [Case(step.name, "step", partial(steps.measure, step=step), 120, step.name) for step in steps.steps(bench)]
    found += [Case("job", "job", job.job, 180, "job"), Case("job/stages", "job", job.stages, 120, "job")]
    for size, captions, way in SAMPLES[:1] if bench.dry else SAMPLES:
        run = partial(_sample, size=size, captions=captions, way="eager" if bench.dry else way)
        found.append(Case(f"sample/{size}/{captions}/{way}", "sample", run, 120, f"sample/{size}"))
    found.append(
        Case("codec", "codec", partial(_other, module="benchmarks.bench_codec", name="gpu_codec", given=5), 120, "codec")
    )
    size = 0.01 if bench.dry else 14.0
    other = partial(_other, module="benchmarks.checkpoint", name="gpu_checkpoint", given=size)
    found.append(Case("checkpoint", "checkpoint", other, 120, "checkpoint"))
    return sorted(found, key=lambda case: case.name.split("/")[-1] in LATE or "/zero1/" in case.name)


def chosen(known: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """The cases whose section, or the beginning of whose name, is in `only`, in its order."""
    found: dict[str, Case] = {}
    for prefix in only:
        found |= {
            case.name: case
            for case in known
            if case.name not in found and (case.section == prefix or case.name.startswith(prefix))
        }
    return list(found.values())


def _attention(bench: Bench) -> list[Figures]:
    measured = {row["name"]: row for row in results.figures(results.read(bench.out), "peak")}
    return kernels.attention(bench, measured["product"]["tflops"] if "product" in measured else PRODUCT_TFLOPS)


def _sample(bench: Bench, size: str, captions: int, way: str) -> list[Figures]:
    from benchmarks import sample_model

    model = None
    if bench.dry:
        config = shapes.recipe(bench, "L").get(ModelConfig)
        model = VideoAR(config, sample_model.PAPER_SPEC.bits, TextTokenizer.make(config).vocabulary).eval()
    return [sample_model.measure(size, captions, bench.device, 1 if bench.dry else 5, way=way, model=model)]


def _other(bench: Bench, module: str, name: str, given: float) -> list[Figures]:
    """Call the GPU part of another benchmark: `name(device, given)`."""
    try:
        function = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise CannotMeasure(f"{module}.{name}: {error}") from error
    return list(function(bench.device, given))
