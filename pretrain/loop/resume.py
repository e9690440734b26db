"""Where a run continues from: the newest undamaged checkpoint, checked against the present configuration, and restored.

In:  the configuration, the counted curriculum, the datasets, the ranks.
Out: a `ResumePoint`; then weights, moments, EMA and guard as they were, at any number of ranks.

All ranks make the same calls: rank 0 looks into the run folder, the others get its answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.config import ClusterConfig, Config, RunConfig
from cluster.config.precision import Precision, hardware, settle
from cluster.runtime import checkpoint_folders
from cluster.runtime.process_group import Ranks
from pretrain.checkpoint import reader
from pretrain.checkpoint.deepspeed_io import to_universal
from pretrain.checkpoint.train_state import TrainState, past_digest
from pretrain.checkpoint.writer import CHECKPOINTS
from pretrain.data.config import CurriculumConfig
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.deepspeed_config import zero_stage
from pretrain.engine.ema import Ema
from pretrain.engine.engine import Engine
from pretrain.loop.guard import Guard
from pretrain.model.config import ModelConfig


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to continue from, or the beginning of a run."""

    state: TrainState
    """What a checkpoint would hold now: step and tokens of the checkpoint (0 in a new run), all else as presently configured."""
    saved: TrainState | None
    """What the checkpoint holds; None in a new run."""
    checkpoint: Path | None
    universal: bool
    """Whether DeepSpeed can read the checkpoint only in its universal form, because it has another number of ranks."""

    def source(self, ranks: Ranks, log: Callable[[str], None]) -> Path | None:
        """Return the folder that DeepSpeed reads: the checkpoint or its universal form, which is made here. All ranks call it."""
        if self.saved is None or self.checkpoint is None or not self.universal:
            return self.checkpoint
        log(f"{self.checkpoint.name} was written by {self.saved.world} ranks, this job has {ranks.world}: converting it")
        made: Path = ranks.broadcast(to_universal(self.checkpoint) if ranks.first else None)
        return made

    def restore(self, source: Path | None, engine: Engine, ema: Ema | None, guard: Guard) -> None:
        """Read the checkpoint, or begin the EMA of a new run. All ranks call it together; raises CheckpointError."""
        if self.saved is None or self.checkpoint is None or source is None:
            if ema is not None:
                ema.start(engine.slices())
            return
        reader.load(engine, self.checkpoint, source, ema)
        guard.restore(self.saved.guard)
        if self.universal and engine.ranks.first:
            shutil.rmtree(source)


def settle_dtype(config: Config, ranks: Ranks, checkpoint: Path | None) -> tuple[Config, Precision]:
    """Settle `train.dtype`, as the checkpoint records it or else by the hardware of all ranks, which all call this.

    Returns the configuration with the type in the place of `auto`. Raises DtypeError.
    """
    train, recorded = config.get(TrainConfig), ""
    if checkpoint is not None:
        recorded = yaml.safe_load((checkpoint / "config.yaml").read_text())["train"]["dtype"]
    wanted = train.dtype
    if wanted == "auto" and not recorded and zero_stage(config.get(DeepSpeedConfig)) == 0:
        settled = Precision("train.dtype", "float32", "auto: ZeRO stage 0 trains in nothing else")
    else:
        found = ranks.all_gather(hardware(ranks.device.type))
        accept = config.get(ClusterConfig).accept_slow_dtype
        settled = settle("train.dtype", wanted, found, recorded=recorded, accept=accept)
    return config.replaced(train.model_copy(update={"dtype": settled.dtype})), settled


def find(
    config: Config, curriculum: CurriculumConfig, datasets: TokenDatasets, ranks: Ranks, log: Callable[[str], None]
) -> ResumePoint:
    """Find the newest undamaged checkpoint of RUN and check that this configuration continues it. Raises ResumeError.

    curriculum: counted, with batches in samples and stages in steps.
    """
    train, root = config.get(TrainConfig), config.get(RunConfig).dir / CHECKPOINTS
    if ranks.first:
        checkpoint_folders.remove_leftovers(root)
    checkpoint: Path | None = ranks.broadcast(checkpoint_folders.newest(root, log) if ranks.first else None)
    saved = None if checkpoint is None else TrainState.read(checkpoint / "state.json")
    step = 0 if saved is None else saved.step
    state = TrainState(
        step=step,
        stage=0,
        stage_ends=False,
        tokens=0 if saved is None else saved.tokens,
        world=ranks.world,
        zero_stage=zero_stage(config.get(DeepSpeedConfig)),
        optimizer=train.optimizer,
        seed=config.get(RunConfig).seed,
        data_digest=datasets.digest,
        tokenizer=datasets.spec.plain(),
        model=config.get(ModelConfig).model_dump(mode="json"),
        past=past_digest(curriculum, step),
        has_ema=train.ema > 0,
    )
    if saved is None or checkpoint is None:
        return ResumePoint(state, None, None, universal=False)
    for note in saved.check(state, accept_new_data=train.accept_new_data, folder=checkpoint):
        log(note)
    return ResumePoint(state, saved, checkpoint, universal=reader.needs_universal(saved, ranks))
