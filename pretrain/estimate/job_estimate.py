"""The estimate of a training job: memory, tokens, FLOPs, traffic, hours.

In:  a configuration, a tokenizer's spec, a machine.
Out: a `JobEstimate` of plain numbers. Nothing is run and nothing of the size of the model is allocated.

Memory is what ZeRO keeps per rank (its stage decides what is divided among the ranks) and what a step of the largest shape adds to
it. Under ZeRO-3 the lower stages, which never gather weights in a step, are estimated too. Time is FLOPs over the expected share of
the peak (`Machine.mfu`), or traffic over the link's speed where that takes longer; ZeRO-3 moves the weights twice and the gradients
once per micro-batch. How a global batch is dealt to ranks, micro-batches and packed rows is the trainer's own rule (pretrain/data/batch.py),
on captions whose lengths are spread evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import Config
from pretrain.data.batch import arrange, split
from pretrain.data.config import CurriculumConfig, Mix, Stage, ranks_per_sequence
from pretrain.data.curriculum import counted, share
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.deepspeed_config import zero_stage
from pretrain.estimate.flops import EstimateError, attended_pairs, training_flops
from pretrain.estimate.memory import Memory, checkpoint_bytes, layout_of, memory, parameters_of
from pretrain.model.config import ModelConfig
from pretrain.objective.config import ObjectiveConfig, stage_objective
from tokenizer.config import TokenizerConfig
from tokenizer.quantization.codec_spec import CodecSpec

GPUS_PER_HOST = 8
FULL = 0.9
"""Share of a GPU's memory that a plan may take; the rest is the allocator's."""


@dataclass(frozen=True)
class Machine:
    """The machine to be rented."""

    gpus: int
    memory_gb: float
    """GB (1e9 bytes) per GPU."""
    peak: float
    """Dense bf16 FLOPs per second of a GPU."""
    mfu: float = 0.4
    """Share of the peak that model FLOPs are expected to reach."""
    link_gb: float = 50.0
    """GB per second that a GPU can send to others (50 = a port of 400 Gbit/s per GPU)."""


@dataclass(frozen=True)
class LowerStage:
    """The same job under a lower ZeRO stage."""

    stage: int
    memory: float
    """Bytes per GPU."""
    fits: bool


@dataclass(frozen=True)
class StageEstimate:
    """One stage of the curriculum."""

    name: str
    steps: int
    samples: int
    tokens: float
    """Positions, text and video."""
    flops: float
    """Model FLOPs, without recomputation."""
    compute_hours: float
    traffic_hours: float
    """Time of ZeRO's traffic alone; it overlaps with computing."""
    hours: float
    """The longer of both, step by step."""
    idle: float
    """Share of the positions of all ranks and micro-batches that are no sample's: padded text, rounded-up rows, fill samples."""
    packed: bool
    """Whether some steps share rows among samples."""


@dataclass(frozen=True)
class JobEstimate:
    """The whole job."""

    parameters: int
    memory: Memory
    stages: tuple[StageEstimate, ...]
    fits: bool
    """Whether memory fits with a tenth to spare for the allocator."""
    lower: tuple[LowerStage, ...]
    """Under ZeRO-3: the lower stages, which keep whole weights on every GPU and never gather them in a step."""
    checkpoint: float
    """Bytes of host memory that checkpoints copy to, on a host with `GPUS_PER_HOST` GPUs, or with all if there are fewer."""

    @property
    def hours(self) -> float:
        """Hours of the whole curriculum."""
        return sum(stage.hours for stage in self.stages)


def estimate_job(config: Config, machine: Machine, *, spec: CodecSpec | None = None, text: int | None = None) -> JobEstimate:
    """Return the estimate of a job. text: mean text tokens per sample (default: half of model.text_length, the most there can be).

    Raises EstimateError for a job without stages, ValueError for a shape that the tokenizer cannot encode.
    """
    if not config.get(CurriculumConfig).stages:
        raise EstimateError("curriculum.stages is empty; there is nothing to plan")
    model, train = config.get(ModelConfig), config.get(TrainConfig)
    spec = spec_of(config.get(TokenizerConfig)) if spec is None else spec
    mean = (1 + model.text_length) / 2 if text is None else min(text, model.text_length)
    stages = counted(config.get(CurriculumConfig), spec).stages
    parameters = parameters_of(model, spec.bits)
    shapes = [
        (
            _largest_micro_batch(mix, train, layout_of(mix, spec, model.text_length).length, machine.gpus, together)
            // together,
            stage.activation_checkpointing or train.activation_checkpointing,
        )
        for stage in stages
        for together in (ranks_per_sequence(stage, machine.gpus),)
        for mix in stage.mix
    ]

    def largest(zero: int | None = None) -> Memory:
        needs = (memory(config, parameters, tokens, spec.bits, machine.gpus, policy, zero) for tokens, policy in shapes)
        return max(needs, key=lambda each: each.total)

    def fits(need: Memory) -> bool:
        return need.total <= FULL * machine.memory_gb * 1e9

    need, configured = largest(), zero_stage(config.get(DeepSpeedConfig))
    lower = [(stage, largest(stage)) for stage in (1, 2) if configured == 3]
    return JobEstimate(
        parameters=parameters,
        memory=need,
        stages=tuple(estimate_stage(stage, config, spec, parameters, mean, machine) for stage in stages),
        fits=fits(need),
        lower=tuple(LowerStage(stage, other.total, fits(other)) for stage, other in lower),
        checkpoint=checkpoint_bytes(config, parameters, machine.gpus, min(machine.gpus, GPUS_PER_HOST)),
    )


def spec_of(config: TokenizerConfig) -> CodecSpec:
    """Return the spec that the section `tokenizer` describes, without any weights and so without a digest."""
    network = config.network
    return CodecSpec(network.bits, network.spatial_stride, network.temporal_stride, "", dict(config.scales))


def _largest_micro_batch(mix: Mix, train: TrainConfig, longest: int, gpus: int, together: int) -> int:
    """Return the positions of the largest micro-batch that the trainer may form of a mix. longest: positions of its longest sample."""
    sequences = gpus // together
    plain = split(mix.batch, train.micro_batch, sequences).micro_batch * longest
    return max(plain, min(train.pack_tokens, -(-mix.batch // sequences) * longest))


def text_lengths(mean: float, longest: int, count: int) -> list[int]:
    """Return `count` lengths of text, evenly spread around `mean` as far as 0 and `longest` allow."""
    reach = min(mean, longest - mean)
    return [round(mean + reach * ((2 * number + 1) / count - 1)) for number in range(count)]


def estimate_stage(
    stage: Stage, config: Config, spec: CodecSpec, parameters: int, text: float, machine: Machine
) -> StageEstimate:
    """Return the estimate of one stage. text: mean text tokens per sample."""
    model, train = config.get(ModelConfig), config.get(TrainConfig)
    window = stage_objective(stage, config.get(ObjectiveConfig)).window
    size = 4 if train.dtype == "float32" else 2
    tokens = flops = compute = traffic = hours = computed = 0.0
    samples, packed = 0, False
    # GPUs that share a sequence (Ulysses) take a part of its work each; its all-to-alls are not counted.
    sequences = machine.gpus // ranks_per_sequence(stage, machine.gpus)
    _, counts = share([mix.weight for mix in stage.mix], stage.steps)
    for mix, steps in zip(stage.mix, counts):
        layout = layout_of(mix, spec, round(text))
        each = training_flops(parameters, layout.length, model.layers, model.width, attended_pairs(layout, window))
        lengths = text_lengths(text, model.text_length, mix.batch)
        dealt = arrange(
            lengths, layout.length - layout.text, model.text_length,
            micro_batch=train.micro_batch, world=sequences, budget=train.pack_tokens, above=train.pack_above,
        )  # fmt: skip
        micro_steps = len(dealt.micro_batches[0])
        # A rank with an empty slot waits for the others: time goes by positions, not by samples.
        busy = dealt.positions / machine.gpus * each / layout.length / (machine.peak * machine.mfu)
        moved = 3 * size * parameters * (machine.gpus - 1) / machine.gpus * micro_steps / (machine.link_gb * 1e9)
        tokens += steps * (mix.batch * (layout.length - layout.text) + sum(lengths))
        flops += steps * mix.batch * each
        compute += steps * busy / 3600
        traffic += steps * moved / 3600
        hours += steps * max(busy, moved) / 3600
        samples += steps * mix.batch
        computed += steps * dealt.positions
        packed = packed or dealt.row > 0
    return StageEstimate(
        stage.name, stage.steps, samples, tokens, flops, compute, traffic, hours, max(0.0, 1 - tokens / computed), packed
    )
