"""Where a run continues from: the newest undamaged checkpoint, checked against the present configuration, and restored.

In:  the configuration, the counted curriculum, the datasets, the ranks.
Out: a `ResumePoint`; then weights, moments, EMA and guard as they were, at any number of ranks.

All ranks make the same calls: rank 0 looks into the run folder, the others get its answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.config import ClusterConfig, Config, RunConfig
from cluster.config.errors import first_problem
from cluster.config.precision import Precision, hardware, settle
from cluster.runtime import checkpoint_folders
from cluster.runtime.process_group import Ranks
from pretrain.checkpoint import reader
from pretrain.checkpoint.deepspeed_io import to_universal
from pretrain.checkpoint.resume_rules import Changes, compare_data, compare_keys, compare_stages
from pretrain.checkpoint.train_state import ResumeError, TrainState
from pretrain.checkpoint.writer import CHECKPOINTS
from pretrain.data.config import CurriculumConfig
from pretrain.data.curriculum import Curriculum, counted
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.deepspeed_config import zero_stage
from pretrain.engine.ema import Ema
from pretrain.engine.engine import Engine
from pretrain.engine.optimizer import learning_rate
from pretrain.loop.guard import Guard
from pretrain.model.config import ModelConfig
from tokenizer.quantization.codec_spec import CodecSpec

HISTORY = ("metrics.jsonl", "validation.jsonl", "skipped.jsonl", "samples", "tensorboard")
"""What a run folder keeps of the steps that were trained."""


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
        checkpoint = self.checkpoint
        made: Path = ranks.from_first(lambda: to_universal(checkpoint))
        return made

    def restore(self, source: Path | None, engine: Engine, ema: Ema | None, guard: Guard) -> None:
        """Read the checkpoint, or begin the EMA of a new run. All ranks call it together; raises CheckpointError."""
        if self.saved is None or self.checkpoint is None or source is None:
            if ema is not None:
                ema.start(engine.slices())
            return
        reader.load(engine, self.checkpoint, source, ema)
        guard.restore(self.saved.guard)
        if self.universal:
            engine.ranks.from_first(lambda: shutil.rmtree(source))


def settle_dtype(config: Config, ranks: Ranks, checkpoint: Path | None) -> tuple[Config, Precision]:
    """Settle `train.dtype`, as the checkpoint records it or else by the hardware of all ranks, which all call this.

    Returns the configuration with the type in the place of `auto`. Raises DtypeError.
    """
    train, known = config.get(TrainConfig), ""
    if checkpoint is not None:
        known = recorded(checkpoint)["train"]["dtype"]
    wanted = train.dtype
    if wanted == "auto" and not known and zero_stage(config.get(DeepSpeedConfig)) == 0:
        settled = Precision("train.dtype", "float32", "auto: ZeRO stage 0 trains in nothing else")
    else:
        found = ranks.all_gather(hardware(ranks.device.type))
        accept = config.get(ClusterConfig).accept_slow_dtype
        settled = settle("train.dtype", wanted, found, recorded=known, accept=accept)
    return config.replaced(train.model_copy(update={"dtype": settled.dtype})), settled


def locate(run: Path, log: Callable[[str], None], *, start_over: bool) -> Path | None:
    """Return the newest sound checkpoint of a run, or None for one that begins; what lies above it is set aside. Rank 0 only.

    start_over: begin anew although there are checkpoints: those of runs before it was set are set aside, with their metrics.
    Raises ResumeError if there are checkpoints and none is sound.
    """
    root = run / CHECKPOINTS
    checkpoint_folders.remove_leftovers(root)
    there = bool(checkpoint_folders.listed(root))

    def none_sound(found: str) -> ResumeError:
        return ResumeError(
            f"{root}: all checkpoints are damaged ({found}); restore one, or set train.start_over=true to set them aside and begin at "
            "step 1, or set run.dir to a new folder"
        )

    found = checkpoint_folders.resumed(root, log, None if start_over else none_sound)
    if not start_over:
        return found
    if found is not None and recorded(found)["train"].get("start_over"):
        log(f"train.start_over: done before; {found.name} was trained since (to start over again, move {root} away)")
        return found
    old = [*checkpoint_folders.listed(root), *(run / name for name in HISTORY if (run / name).exists())]
    for path in old if there else ():
        log(f"train.start_over: {path.name} is set aside as {checkpoint_folders.set_aside(path, run)}")
    return None


def recorded(checkpoint: Path) -> dict[str, Any]:
    """Return the configuration that a checkpoint was trained with, as plain values. Raises ResumeError."""
    path = checkpoint / "config.yaml"
    try:
        plain: dict[str, Any] = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ResumeError(f"{path}: no readable configuration ({error})") from error
    return plain


def find(
    config: Config, curriculum: CurriculumConfig, datasets: TokenDatasets, ranks: Ranks, log: Callable[[str], None]
) -> ResumePoint:
    """Find the newest undamaged checkpoint of RUN and check that this configuration continues it. Raises ResumeError.

    curriculum: counted, with batches in samples and stages in steps.
    """
    train, run = config.get(TrainConfig), config.get(RunConfig).dir
    checkpoint: Path | None = ranks.from_first(lambda: locate(run, log, start_over=train.start_over))
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
        has_ema=train.ema > 0,
        contents=datasets.contents,
    )
    if saved is None or checkpoint is None:
        return ResumePoint(state, None, None, universal=False)
    compared = replace(state, **datasets.digests_as(saved.contents))
    for line in changed(config, curriculum, saved, compared, checkpoint):
        log(line)
    return ResumePoint(state, saved, checkpoint, universal=reader.needs_universal(saved, ranks))


def changed(config: Config, curriculum: CurriculumConfig, saved: TrainState, state: TrainState, checkpoint: Path) -> list[str]:
    """Return a line for each change since a checkpoint that has an effect. Raises ResumeError for one that the run cannot take.

    curriculum: the present one, counted. state: as presently configured.
    """
    old, step = recorded(checkpoint), saved.step
    changes = Changes(str(checkpoint), accept_new_data=config.get(TrainConfig).accept_new_data)
    if saved.tokenizer["digest"] != state.tokenizer["digest"]:
        before, now = saved.tokenizer["digest"][:12], state.tokenizer["digest"][:12]
        changes.refuse("tokenizer digest of the shards", before, now, "restore the shards, or set run.dir to a new folder")
    compare_keys(old, config.plain(), changes)
    try:
        stages = {"stages": old["curriculum"]["stages"]}
        former = counted(CurriculumConfig.model_validate(stages), CodecSpec.parse(saved.tokenizer))
        train = TrainConfig.model_validate(
            {key: value for key, value in old["train"].items() if key in TrainConfig.model_fields}
        )
    except (ValidationError, KeyError) as error:
        why = first_problem(error) if isinstance(error, ValidationError) else f"no {error}"
        raise ResumeError(f"{checkpoint}: its curriculum is of another version and cannot be compared ({why})") from error
    compare_stages(former, curriculum, step, changes)
    compare_data(saved, state, step, curriculum, changes)
    whole, present = Curriculum(former), Curriculum(curriculum)
    if step < present.steps:
        before = learning_rate(min(step + 1, whole.steps), train, whole)
        now = learning_rate(step + 1, config.get(TrainConfig), present)
        if abs(now - before) > 1e-3 * max(now, before):
            changes.announce(f"learning rate of step {step + 1}", f"{before:.3g}", f"{now:.3g}", "it jumps from here on")
    return changes.lines
