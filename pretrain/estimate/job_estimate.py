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
from typing import Literal

import torch

from cluster.config import Config
from pipeline.records import Bucket
from pretrain.model.block_attention import ROW_STEP, SCORES
from pretrain.engine.config import CurriculumConfig, DeepSpeedConfig, Mix, ModelConfig, ObjectiveConfig, Stage, TrainConfig
from pretrain.data.curriculum import counted, share
from pretrain.estimate.flops import PEAKS, causal_pairs, training_flops
from pretrain.model.layers import ffn_width
from pretrain.model.transformer import VideoAR
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.objective.sequence_parallel import size_of
from tokenizer.config import TokenizerConfig
from tokenizer.quantization.codec_spec import CodecSpec

PIECES = 3
"""Pieces of scores that block attention holds at once in its backward pass: weights, and the gradients of weights and scores."""
Checkpointing = Literal["none", "selective", "full"]
LIVE_PARAMETERS = 1e9
"""DeepSpeed's default of zero_optimization.stage3_max_live_parameters."""


class PlanError(ValueError):
    """A job or machine that no plan can be made for; the message names the mend."""


@dataclass(frozen=True)
class Machine:
    """What is to be rented."""

    gpus: int
    memory_gb: float
    """GB (1e9 bytes) a GPU."""
    peak: float
    """Dense bf16 FLOPs a second of a GPU."""
    mfu: float = 0.4
    """Share of the peak that model FLOPs are expected to reach."""
    link_gb: float = 50.0
    """GB a second that a GPU can send to others (50 = a 400 Gbit/s port a GPU)."""


@dataclass(frozen=True)
class Memory:
    """Bytes a rank, at the largest shape of the curriculum."""

    weights: float
    gradients: float
    optimizer: float
    """Float32 masters and both moments."""
    average: float
    gathered: float
    """Whole weights of other ranks, held while a layer runs: DeepSpeed's limit, or the model if it is smaller."""
    activations: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.weights + self.gradients + self.optimizer + self.average + self.gathered + self.activations


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


def peak_of(name: str) -> float:
    """Return the bf16 peak of a GPU by name. Raises PlanError naming the known ones."""
    found = next((peak for known, peak in PEAKS.items() if known.lower() == name.lower()), None)
    if found is None:
        raise PlanError(f"no peak is known for GPU `{name}`; known: {', '.join(PEAKS)}; or give it with --tflops")
    return found


def spec_of(config: TokenizerConfig) -> CodecSpec:
    """Return the spec that the tokenizer section asks for, without any weights (so without a digest)."""
    network = config.network
    return CodecSpec(network.bits, network.spatial_stride, network.temporal_stride, "", dict(config.scales))


def parameters_of(model: ModelConfig, bits: int) -> int:
    """Return the number of parameters of VideoAR, by building it without memory."""
    with torch.device("meta"):
        built = VideoAR(model, bits, TextTokenizer.make(model).vocabulary)
    return sum(parameter.numel() for parameter in built.parameters())


def shape_of(mix: Mix, spec: CodecSpec) -> tuple[int, list[int]]:
    """Return (latent frames, tokens of each scale of a frame) of a mix."""
    bucket = Bucket.parse(mix.bucket)
    latents, rows, columns = spec.grid(mix.frames or bucket.frames, bucket.height, bucket.width)
    return latents, [r * c for r, c in spec.scales(rows, columns)]


def block_bytes(model: ModelConfig, size: int, policy: Checkpointing) -> float:
    """Return bytes a token that one block's forward pass keeps for its backward pass. size: bytes of an activation.

    Always: the block's input, two normed inputs, the three of queries, keys and values before and after norm and rotation,
    attention's output before and after its map, gate and up. Without `selective` also the product of gate and up, and where
    the element-wise parts are not compiled, silu(gate) and the float32 steps of the norms.
    """
    width, hidden = model.width, ffn_width(model)
    if policy == "selective":
        return size * (11.0 * width + 2 * hidden)
    if model.compile:
        return size * (11.0 * width + 3 * hidden)
    return size * ((15.0 if size == 4 else 22.0) * width + 4 * hidden)


def activation_bytes(model: ModelConfig, tokens: int, bits: int, *, size: int, policy: Checkpointing) -> float:
    """Return bytes that the forward pass of `tokens` positions keeps for the backward pass.

    size: bytes of an activation. policy `full` keeps the blocks' inputs; the one block that the backward pass makes again
    is counted whole. Attention weights are not in it: FlexAttention never keeps them, `blocks` those of short sequences only.
    """
    width = model.width
    block = block_bytes(model, size, policy)
    kept = model.layers * size * width + block if policy == "full" else model.layers * block
    # Final norm, gradient of the hidden states, fed features, rotation.
    head = (size if model.compile else 8) * width + size * width + size * bits + 4 * width // model.heads
    return float(tokens) * (kept + head)


def peak_bytes(
    model: ModelConfig, length: int, bits: int, *, samples: int = 1, size: int, policy: Checkpointing, blocks: bool
) -> float:
    """Return bytes at the worst moment of a step's forward and backward, weights and their gradients left out.

    That is what the forward pass keeps, and the larger of two moments in the last block's backward pass: the feed-forward's,
    whose gradients stand beside all that is kept, and attention's, when the feed-forward's share is free again. There the
    backend `blocks` (a CPU) holds the gradients of keys and values in float32, and pieces of scores. The attention weights
    that it keeps of short sequences (`pretrain.blocks.KEPT`) are not in it.
    length: positions of a sample.
    """
    tokens, width, hidden = samples * length, model.width, ffn_width(model)
    beside = 4.0 if policy == "selective" else 2.0 if model.compile else 3.0
    feed = tokens * size * (beside * hidden + width)
    freed = tokens * size * ((2.0 if policy == "selective" else 3.0) * hidden + 3 * width)
    attention = tokens * (3.0 * size + (8 if blocks else 2 * size)) * width - freed
    if blocks:
        rows, products = min(ROW_STEP, length), samples * model.heads
        attention += PIECES * min(products, max(2, SCORES // (length * rows))) * rows * length * size
    return activation_bytes(model, tokens, bits, size=size, policy=policy) + max(feed, attention)


def memory(config: Config, parameters: int, tokens: int, bits: int, ranks: int, policy: Checkpointing) -> Memory:
    """Return what a rank holds. tokens: positions of its micro-batch. policy: activation checkpointing."""
    train, deepspeed = config.get(TrainConfig), config.get(DeepSpeedConfig)
    stage = int(deepspeed.zero_optimization.get("stage", 3))
    size = 2 if train.dtype == "bfloat16" else 4
    live = min(parameters, float(deepspeed.zero_optimization.get("stage3_max_live_parameters", LIVE_PARAMETERS)))
    activations = peak_bytes(config.get(ModelConfig), tokens, bits, size=size, policy=policy, blocks=False)
    return Memory(
        weights=size * parameters / (ranks if stage == 3 else 1),
        gradients=size * parameters / (ranks if stage >= 2 else 1),
        optimizer=12 * parameters / (ranks if stage >= 1 else 1),
        average=(4 * parameters / ranks) if train.ema else 0.0,
        gathered=size * live if stage == 3 and ranks > 1 else 0.0,
        activations=activations,
    )


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
