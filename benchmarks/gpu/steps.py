"""A training step of L: ours under ZeRO, and the plain model's. Each runs in a process of its own: its peak memory is its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.gpu import shapes
from benchmarks.gpu.bench import Bench, CannotMeasure, Figures, spread
from benchmarks.gpu.plain import plain_step
from benchmarks.gpu.shapes import Shape
from cluster.config import Config
from cluster.runtime.process_group import connect
from pretrain.data.batch import Batch
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.engine import Engine
from pretrain.estimate.flops import PEAKS, attended_pairs, training_flops
from pretrain.estimate.memory import Checkpointing, memory, parameters_of
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from tokenizer.quantization.codec_spec import CodecSpec

MFU_PEAK = PEAKS["H100"] / 1e12
"""TFLOP/s that MFU is counted against."""
POLICIES: tuple[Checkpointing, ...] = ("none", "selective", "full")
SPARE = 0.95
"""Share of the card's memory that a step may be planned to take."""


@dataclass(frozen=True)
class Step:
    """What to measure."""

    shape: Shape
    zero: int
    """ZeRO stage; 0 = the plain model."""
    policy: Checkpointing

    @property
    def name(self) -> str:
        return f"step/{self.shape.name}/{f'zero{self.zero}' if self.zero else 'plain'}/{self.policy}"


def steps(bench: Bench) -> list[Step]:
    short, long = shapes.short(bench), shapes.long(bench)
    first = [Step(short, 0, "none"), Step(short, 3, "none"), Step(long, 0, "full"), Step(long, 3, "selective")]
    return [*first, Step(long, 3, "full"), Step(short, 1, "none"), Step(long, 1, "full"), Step(long, 1, "selective")]


def measure(bench: Bench, step: Step) -> list[Figures]:
    """Three steps to warm up, five synchronized each, ten in a row."""
    config = shapes.recipe(
        bench, "L", f"deepspeed.zero_optimization.stage={step.zero or 3}", f"train.micro_batch={step.shape.samples}"
    )
    spec, model = shapes.spec(config), config.get(ModelConfig)
    layout = step.shape.layout(spec)
    parameters = parameters_of(model, spec.bits)
    planned = {policy: plan(config, parameters, step.shape.samples * layout.length, spec.bits, policy) for policy in POLICIES}
    fits(bench, step, planned, layout.length)
    if step.zero:
        run, parameters = our_step(bench, config, spec, step)
        counted = attended_pairs(layout, step.shape.window)
    else:
        run, parameters = plain_step(bench, model, spec.bits, layout, step.shape.samples, recompute=step.policy == "full")
        counted = layout.length * (layout.length + 1) // 2
    first = bench.wall(run, warm=0, rounds=3)
    bench.reset_peak()
    alone = bench.wall(run, warm=0, rounds=5)
    together = bench.pipelined(run, rounds=10)
    tokens = step.shape.samples * layout.length
    flops = training_flops(parameters, tokens, model.layers, model.width, step.shape.samples * counted)
    figures: Figures = {
        "name": step.name, "shape": step.shape.name, "way": f"zero{step.zero}" if step.zero else "plain", "policy": step.policy,
        "step_s": median(alone), "spread": spread(alone), "pipelined_s": together, "first_s": first[0], "second_s": first[1],
        "video_tokens_per_s": step.shape.samples * layout.video / together, "tflop": flops / 1e12,
        "mfu": flops / median(alone) / 1e12 / MFU_PEAK, "mfu_pipelined": flops / together / 1e12 / MFU_PEAK,
        "parameters": parameters, "peak_gb": bench.peak() / 1e9,
    }  # fmt: skip
    if step.zero:
        figures |= {"plan_gb": planned[step.policy] / 1e9, "peak_to_plan": bench.peak() / planned[step.policy]}
    return [figures]


def plan(config: Config, parameters: int, tokens: int, bits: int, policy: Checkpointing) -> float:
    """Bytes that `videoar plan` would give this step on one card."""
    return memory(config, parameters, tokens, bits, 1, policy).total


def fits(bench: Bench, step: Step, planned: dict[Checkpointing, float], length: int) -> None:
    """Raise CannotMeasure, with the smallest change that would do, if the card has too little memory for a step."""
    room = SPARE * bench.memory
    if not bench.memory or planned[step.policy] <= room:
        return
    need = f"{step.name} needs {planned[step.policy] / 1e9:.0f} GB, this card has {bench.memory / 1e9:.0f}"
    for policy in POLICIES[POLICIES.index(step.policy) + 1 :]:
        if planned[policy] <= room:
            raise CannotMeasure(f"{need}; it fits with train.activation_checkpointing={policy}")
    raise CannotMeasure(
        f"{need}; even with full checkpointing {length} x {step.shape.samples} tokens do not fit: use more cards or a smaller model"
    )


def batch_of(shape: Shape, spec: CodecSpec, seed: int) -> Batch:
    """A batch of random bits and text, other ones for each seed."""
    generator = torch.Generator().manual_seed(seed)
    size, count = shape.grid[0] * spec.frame_bytes(*shape.grid[1:]), shape.samples
    return Batch(
        bits=torch.randint(0, 256, (count, size), dtype=torch.uint8, generator=generator),
        text=torch.randint(0, 256, (count, shape.text), generator=generator),
        text_length=torch.full((count,), shape.text, dtype=torch.int64),
        weight=torch.full((count,), 1.0 / count),
        seeds=torch.randint(0, 2**31, (count,), generator=generator),
        grid=shape.grid,
        ids=("",) * count,
    )


def our_step(bench: Bench, config: Config, spec: CodecSpec, step: Step) -> tuple[Callable[[], None], int]:
    """Return a training step of this project, and the number of parameters."""
    ranks = connect(600)
    model, text = config.get(ModelConfig), TextTokenizer.make(config.get(ModelConfig))

    def build() -> Objective:
        if step.zero == 3:
            return Objective(VideoAR(model, spec.bits, text.vocabulary), config.get(ObjectiveConfig), spec)
        with torch.device(bench.device):  # drawing a billion weights on the host takes seconds
            return Objective(VideoAR(model, spec.bits, text.vocabulary), config.get(ObjectiveConfig), spec)

    engine = Engine(build, config.get(TrainConfig), config.get(DeepSpeedConfig), ranks, seed=0)
    module = engine.module
    assert isinstance(module, Objective)
    module.model.activation_checkpointing, module.model.selective = step.policy == "full", step.policy == "selective"
    # As the loader hands them over: in page-locked memory, and other ones in each step.
    batches = [batch_of(step.shape, spec, seed) for seed in range(4)]
    batches = [each.pin_memory() if bench.device.type == "cuda" else each for each in batches]
    number = 0

    def run() -> None:
        nonlocal number
        batch = batches[number % len(batches)].to(bench.device)
        number += 1
        loss = engine.forward(batch, step.shape.window, step.shape.frame_mask, last=True)["loss"]
        engine.backward(loss)
        engine.step(1e-4)

    return run, engine.parameters


def environment(dry: bool) -> None:
    """Set what DeepSpeed reads when it is imported."""
    os.environ["DS_ACCELERATOR"] = "cpu" if dry else "cuda"
