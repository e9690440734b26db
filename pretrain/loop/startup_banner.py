"""DOC from pretrain/loop/step_metrics.py."""

from __future__ import annotations

import torch

from cluster.config import Config, RunConfig
from pretrain.data.config import ranks_per_sequence
from pretrain.data.curriculum import Curriculum
from pretrain.data.batch import split
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.deepspeed_config import zero_stage
from pretrain.engine.engine import Engine


def banner(config: Config, curriculum: Curriculum, corpus: TokenDatasets, engine: Engine, step: int) -> list[str]:
    """Return the lines that a run begins with: every number that was worked out."""
    train, ranks = config.get(TrainConfig), engine.ranks
    words = [
        f"run {config.get(RunConfig).dir}: {engine.parameters:,} parameters, {train.dtype}, "
        f"ZeRO-{zero_stage(config.get(DeepSpeedConfig))}, {ranks.world} rank(s) on {', '.join(dict.fromkeys(ranks.hosts))} ({ranks.device.type})",
        *(["deterministic algorithms: on"] if torch.are_deterministic_algorithms_enabled() else []),
        f"data {corpus.digest[:12]} of {', '.join(map(str, corpus.folders))}",
    ]
    for stage in curriculum.stages:
        for mix in stage.mix:
            together = ranks_per_sequence(stage, ranks.world)
            parts = split(mix.batch, train.micro_batch, ranks.world // together)
            stream = (mix.bucket, mix.frames)
            grid = "x".join(map(str, corpus.grid(stream)))
            rows = sum(source.rows for source in corpus.sources(stream))
            words.append(
                f"stage {stage.name}: {stage.steps} steps, {mix.shape} (latents {grid}), {rows} samples, "
                f"global batch {mix.batch} = {ranks.world // together} x {parts.micro_batch} x {parts.accumulation}"
                + (f", {together} ranks share each sequence" if together > 1 else "")
            )
            if together != stage.sequence_parallel:
                words.append(
                    f"  sequence_parallel {stage.sequence_parallel} does not divide {ranks.world} ranks: {together} taken"
                )
    if step:
        words.append(f"going on after step {step} of {curriculum.steps}")
    return words
