"""What a training job will need, worked out before a machine is rented: memory, tokens, FLOPs, traffic, hours.

In:  a configuration, a tokenizer's spec, a machine.
Out: a `Plan` of plain numbers. Nothing is run and nothing of the size of the model is allocated.
Called by: cluster.cli_train (`videoar plan`).

Memory is what ZeRO keeps a rank (its stage decides what is divided by the ranks) plus what a micro-batch of the largest
shape keeps for its backward pass. Time is FLOPs over peak x the share of it that is expected (`Machine.mfu`), or the
traffic over the link where that is longer; ZeRO-3 moves the weights twice and the gradients once each micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.config import Config
from pretrain.data.config import CurriculumConfig, Stage, size_of
from pretrain.data.curriculum import counted, share
from pretrain.engine.config import TrainConfig
from pretrain.estimate.flops import causal_pairs, training_flops
from pretrain.estimate.hardware import Machine, PlanError
from pretrain.estimate.memory import Memory, memory, parameters_of, shape_of
from pretrain.model.config import ModelConfig
from pretrain.objective.config import ObjectiveConfig
from tokenizer.config import TokenizerConfig
from tokenizer.quantization.codec_spec import CodecSpec


@dataclass(frozen=True)
class StagePlan:
    """One stage of the curriculum."""

    name: str
    steps: int
    samples: int
    tokens: float
    """Positions, text and video."""
    flops: float
    """Model FLOPs, recomputation left out."""
    compute_hours: float
    traffic_hours: float
    """Time of ZeRO's traffic alone; it overlaps with computing."""
    hours: float
    """The longer of both, step by step."""
    idle: float
    """Share of rank x micro-batch slots that a global batch does not fill."""


@dataclass(frozen=True)
class Plan:
    """The whole job."""

    parameters: int
    memory: Memory
    stages: tuple[StagePlan, ...]
    fits: bool
    """Memory fits with a tenth to spare for the allocator."""

    @property
    def hours(self) -> float:
        """Hours of the whole curriculum."""
        return sum(stage.hours for stage in self.stages)


def spec_of(config: TokenizerConfig) -> CodecSpec:
    """Return the spec that the tokenizer section asks for, without any weights (so without a digest)."""
    network = config.network
    return CodecSpec(network.bits, network.spatial_stride, network.temporal_stride, "", dict(config.scales))


def stage_plan(stage: Stage, config: Config, spec: CodecSpec, parameters: int, text: int, machine: Machine) -> StagePlan:
    """Return one stage's figures. text: text tokens a sample."""
    model, train, objective = config.get(ModelConfig), config.get(TrainConfig), config.get(ObjectiveConfig)
    window = stage.objective(objective).window
    size = 2 if train.dtype == "bfloat16" else 4
    tokens = flops = compute = traffic = hours = 0.0
    samples = slots = 0
    _, counts = share([mix.weight for mix in stage.mix], stage.steps)
    for mix, steps in zip(stage.mix, counts):
        latents, scales = shape_of(mix, spec)
        length = text + latents * sum(scales)
        pairs = causal_pairs(text, latents, scales, window)
        each = training_flops(parameters, length, model.layers, model.width, pairs)
        # GPUs that share a sequence (Ulysses) take a part of its work each; its all-to-alls are not counted.
        alone = machine.gpus // size_of(stage, machine.gpus)
        micro_steps = math.ceil(mix.batch / (alone * train.micro_batch))
        filled = micro_steps * alone * train.micro_batch
        # A rank with an empty slot waits for the others: time goes by slots, not by samples.
        busy = filled / machine.gpus * each / (machine.peak * machine.mfu)
        moved = 3 * size * parameters * (machine.gpus - 1) / machine.gpus * micro_steps / (machine.link_gb * 1e9)
        tokens += steps * mix.batch * length
        flops += steps * mix.batch * each
        compute += steps * busy / 3600
        traffic += steps * moved / 3600
        hours += steps * max(busy, moved) / 3600
        samples += steps * mix.batch
        slots += steps * filled
    return StagePlan(stage.name, stage.steps, samples, tokens, flops, compute, traffic, hours, 1 - samples / slots)


def make(config: Config, machine: Machine, *, spec: CodecSpec | None = None, text: int | None = None) -> Plan:
    """Return the plan of a job. text: text tokens a sample (default: model.text_length, the most there can be).

    Raises PlanError for a job without stages, ValueError for a shape that the tokenizer cannot cut.
    """
    if not config.get(CurriculumConfig).stages:
        raise PlanError("curriculum.stages is empty; there is nothing to plan")
    model, train = config.get(ModelConfig), config.get(TrainConfig)
    spec = spec_of(config.get(TokenizerConfig)) if spec is None else spec
    stages = counted(config.get(CurriculumConfig), spec).stages
    words = model.text_length if text is None else text
    parameters = parameters_of(model, spec.bits)
    shapes = [(stage, *shape_of(mix, spec)) for stage in stages for mix in stage.mix]
    needs = [
        memory(
            config,
            parameters,
            max(train.micro_batch * (words + latents * sum(scales)), train.pack_tokens) // size_of(stage, machine.gpus),
            spec.bits,
            machine.gpus,
            stage.activation_checkpointing or train.activation_checkpointing,
        )
        for stage, latents, scales in shapes
    ]
    need = max(needs, key=lambda each: each.total)
    return Plan(
        parameters=parameters,
        memory=need,
        stages=tuple(stage_plan(stage, config, spec, parameters, words, machine) for stage in stages),
        fits=need.total <= 0.9 * machine.memory_gb * 1e9,
    )
