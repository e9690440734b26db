"""The parts of a run on one rank, as the loop uses them, and the lines that a run begins with.

In:  the configuration, and what train.py puts together from it. Out: a `Job`; the banner, with every number that was derived from
     the configuration, the data and the ranks; the model, and the switch to the stage of a step.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cluster.config import Config, RunConfig
from cluster.metrics import Heartbeat
from cluster.runtime.job_protocol import StopRequest
from cluster.runtime.process_group import Ranks
from pretrain.checkpoint.writer import Checkpoints
from pretrain.data.batch import split
from pretrain.data.config import CurriculumConfig, ranks_per_sequence
from pretrain.data.curriculum import Curriculum, CurriculumStep, Streams
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.deepspeed_config import zero_stage
from pretrain.engine.ema import Ema
from pretrain.engine.engine import Engine
from pretrain.loop.compilation import Compilations
from pretrain.loop.guard import Guard
from pretrain.loop.periodic_samples import PeriodicSamples
from pretrain.loop.validation import Validation
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig, stage_objective
from pretrain.objective.objective import Objective, check_order
from pretrain.objective.sequence_parallel import SequenceGroups
from pretrain.runs.run_logger import RunLogger
from tokenizer.quantization.codec_spec import CodecSpec


@dataclass(frozen=True)
class Job:
    """What the loop works with."""

    config: Config
    data: CurriculumConfig
    """Counted: batches in samples, stages in steps."""
    curriculum: Curriculum
    datasets: TokenDatasets
    ranks: Ranks
    groups: SequenceGroups
    stop: StopRequest
    logger: RunLogger
    heartbeat: Heartbeat
    engine: Engine
    ema: Ema | None
    guard: Guard
    saver: Checkpoints
    validation: Validation | None
    samples: PeriodicSamples
    compilations: Compilations
    peak_flops: float
    """Of all ranks together."""


def open_datasets(config: Config) -> TokenDatasets:
    """Open the token shards of the curriculum. Raises CurriculumError or DataError."""
    data = config.get(CurriculumConfig)
    folders = data.shards or (Path(config.plain()["pipeline"]["output"]),)
    return TokenDatasets.open(folders, Streams(data), data.weights, cache=data.cache, cache_gb=data.cache_gb)


def build(config: Config, spec: CodecSpec, text: TextTokenizer) -> nn.Module:
    """Return the Objective around a new VideoAR; its weights come from torch's seed. Raises ObjectiveError for what a stage cannot train on."""
    for stage in config.get(CurriculumConfig).stages:
        check_order(config.get(ModelConfig), stage_objective(stage, config.get(ObjectiveConfig)))
    model = VideoAR(config.get(ModelConfig), spec.bits, text.vocabulary)
    return Objective(model, config.get(ObjectiveConfig), spec)


def enter_stage(at: CurriculumStep, module: nn.Module, config: Config) -> tuple[int, float]:
    """Set the Objective to the step's stage: corruption and checkpointing. Returns attention window and frame mask."""
    assert isinstance(module, Objective)
    objective = stage_objective(at.stage, config.get(ObjectiveConfig))
    policy = at.stage.activation_checkpointing or config.get(TrainConfig).activation_checkpointing
    module.config = objective
    module.model.activation_checkpointing, module.model.selective = policy == "full", policy == "selective"
    return objective.window, objective.frame_mask


def banner(config: Config, curriculum: Curriculum, datasets: TokenDatasets, engine: Engine, step: int) -> list[str]:
    """Return the banner; `step` is the last one already trained."""
    train, ranks = config.get(TrainConfig), engine.ranks
    lines = [
        f"run {config.get(RunConfig).dir}: {engine.parameters:,} parameters, {train.dtype}, "
        f"ZeRO-{zero_stage(config.get(DeepSpeedConfig))}, {ranks.world} rank(s) on {', '.join(dict.fromkeys(ranks.hosts))} ({ranks.device.type})",
        *(["deterministic algorithms: on"] if torch.are_deterministic_algorithms_enabled() else []),
        f"data {datasets.digest[:12]} of {', '.join(map(str, datasets.folders))}",
    ]
    for stage in curriculum.stages:
        for mix in stage.mix:
            together = ranks_per_sequence(stage, ranks.world)
            parts = split(mix.batch, train.micro_batch, ranks.world // together)
            stream = (mix.bucket, mix.frames)
            grid = "x".join(map(str, datasets.grid(stream)))
            rows = sum(source.rows for source in datasets.sources(stream))
            lines.append(
                f"stage {stage.name}: {stage.steps} steps, {mix.shape} (latents {grid}), {rows} samples, "
                f"global batch {mix.batch} = {ranks.world // together} x {parts.micro_batch} x {parts.accumulation}"
                + (f", {together} ranks share each sequence" if together > 1 else "")
            )
            if together != stage.sequence_parallel:
                lines.append(
                    f"  sequence_parallel {stage.sequence_parallel} does not divide {ranks.world} ranks: using {together}"
                )
    held = (4 + 12 + (4 if train.ema else 0)) * engine.parameters * (train.keep_checkpoints + 1)
    free = shutil.disk_usage(config.get(RunConfig).dir).free
    if free < held:
        lines.append(
            f"warning: {config.get(RunConfig).dir} has {free / 1e9:.3g} GB free; train.keep_checkpoints={train.keep_checkpoints} and the "
            f"next one take up to {held / 1e9:.3g} GB, and those that find no room are lost"
        )
    if step:
        lines.append(f"continuing after step {step} of {curriculum.steps}")
    return lines
