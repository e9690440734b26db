"""What a changed configuration means for a run that continues: one table over all keys.

In:  the configuration that a checkpoint was trained with, as plain values, and the present one.
Out: a line for each change that has an effect; ResumeError for one that no run can take, with key, old value, new value and mend.

A key that an older version did not have counts as its default. A key that is not in the table makes a test fail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.config.differences import flat
from cluster.config.sections import SECTIONS, section_class
from pretrain.checkpoint.train_state import ResumeError, TrainState
from pretrain.data.config import CurriculumConfig, Stage


@dataclass(frozen=True)
class Rule:
    """What happens when a key has changed."""

    kind: Literal["refuse", "order", "switch", "dtype", "announce", "ignore"]
    """`order` is refused unless train.accept_new_data; `switch` is refused from or to 0; `dtype` is refused unless it is now auto."""
    text: str = ""
    """The mend, or the effect."""


IGNORE = Rule("ignore")
WEIGHTS = Rule("refuse", "the weights of this run do not fit another value: restore it, or set run.dir to a new folder")
SAMPLES = Rule("refuse", "every draw of this run comes from it: restore it, or set run.dir to a new folder")
MOMENTS = Rule("refuse", "the optimizer's state is of another kind: restore it, or set run.dir to a new folder")
ROUNDING = Rule("announce", "sums in another order, so losses agree with those of before to rounding only")
MEMORY = Rule("announce", "speed and memory")
UPDATE = Rule("announce", "updates from here on follow it")
OBJECTIVE = Rule("announce", "it trains on another objective from here on, so losses are not comparable with those of before")
STAGE = Rule("announce", "from here on in this stage")

RULES: Mapping[str, Rule] = {
    # Sections that training does not read, or that change no number.
    **dict.fromkeys(("corpus", "tokenizer", "pipeline", "sample", "metrics", "cluster"), IGNORE),
    "run.name": IGNORE,
    "run.dir": IGNORE,
    "run.seed": SAMPLES,
    **{
        f"model.{key}": WEIGHTS
        for key in (
            "layers", "width", "heads", "ffn", "qk_norm", "order", "rope_base", "rope_split", "rope", "rope_spatial", "scale_embedding",
            "max_scales", "previous_frame", "input_resize", "null_token", "text_tokenizer",
        )
    },
    "model.text_length": Rule("announce", "captions are cut there from here on"),
    "model.attention": ROUNDING,
    "model.compile": ROUNDING,
    **{
        f"objective.{key}": OBJECTIVE
        for key in (
            "flip_min", "flip_max", "flip_delta", "flip_time_dependent", "flip_inherit", "requantise", "window", "frame_mask",
            "condition_drop", "scale_weights",
        )
    },
    # What the shards hold is compared by digest, not by path.
    "curriculum.shards": IGNORE,
    "curriculum.weights": Rule("order", "samples alternate in other shares"),
    "curriculum.validation": Rule("announce", "validation losses are not comparable with those of before"),
    "curriculum.cache": IGNORE,
    "curriculum.cache_gb": IGNORE,
    "curriculum.stages": IGNORE,  # compared stage by stage, below
    "curriculum.stages[].name": IGNORE,
    "curriculum.stages[].steps": Rule("refuse", "restore it; a stage may end later, not before what is trained of it"),
    "curriculum.stages[].tokens": IGNORE,  # counted in steps
    "curriculum.stages[].mix": Rule("refuse", "restore it and give the new mix to a stage of its own: some of this one is trained"),
    "curriculum.stages[].learning_rate": STAGE,
    "curriculum.stages[].window": OBJECTIVE,
    "curriculum.stages[].frame_mask": OBJECTIVE,
    "curriculum.stages[].flip_min": OBJECTIVE,
    "curriculum.stages[].flip_max": OBJECTIVE,
    "curriculum.stages[].flip_delta": OBJECTIVE,
    "curriculum.stages[].activation_checkpointing": MEMORY,
    "curriculum.stages[].sequence_parallel": ROUNDING,
    "train.optimizer": MOMENTS,
    "train.muon_factor": UPDATE,
    "train.learning_rate": UPDATE,
    "train.schedule": UPDATE,
    "train.warmup": UPDATE,
    "train.final_ratio": UPDATE,
    "train.betas": UPDATE,
    "train.weight_decay": UPDATE,
    "train.clip": UPDATE,
    "train.ema": Rule("switch", "the moving average follows it from here on"),
    "train.dtype": Rule("dtype", "checkpoints of one type are not read in another: set train.dtype=auto, or run.dir to a new folder"),
    "train.micro_batch": ROUNDING,
    "train.pack_tokens": ROUNDING,
    "train.pack_above": ROUNDING,
    "train.activation_checkpointing": MEMORY,
    "train.threads": ROUNDING,
    "train.shuffle_window": Rule("order", "some samples of the epoch would come twice and others never"),
    "train.spike_sigma": Rule("announce", "other steps are skipped"),
    "train.max_skips": Rule("announce", "the run gives up after another number of skipped steps"),
    "train.deterministic": ROUNDING,
    **{
        f"train.{key}": IGNORE
        for key in (
            "checkpoint_every", "keep_checkpoints", "log_every", "sample_every", "samples", "stop_after", "prefetch",
            "accept_new_data", "start_over", "validate_every", "validation_samples", "compile_cache", "tensorboard",
            "collective_timeout",
        )
    },
    "deepspeed.zero_optimization.stage": Rule("refuse", "its files are laid out otherwise: restore it, or set run.dir to a new folder"),
    "deepspeed": MEMORY,
}  # fmt: skip
"""A key's rule; the entry of a section, or of a key above it, holds for all keys below that have none of their own."""


def rule_of(key: str) -> Rule | None:
    """Return the rule of a dotted key; None if the table has none."""
    while key:
        if key in RULES:
            return RULES[key]
        key = key.rpartition(".")[0]
    return None


class Changes:
    """Collects lines about changed keys, and raises for those that are refused."""

    def __init__(self, where: str, *, accept_new_data: bool) -> None:
        self.where, self.accept = where, accept_new_data
        self.lines: list[str] = []

    def refuse(self, key: str, old: object, new: object, mend: str) -> None:
        """Raise ResumeError."""
        raise ResumeError(f"{self.where}: `{key}` was {_short(old)} in this run and is {_short(new)} now; {mend}")

    def announce(self, key: str, old: object, new: object, effect: str) -> None:
        """Add a line."""
        self.lines.append(f"`{key}` was {_short(old)} in this run and is {_short(new)} now: {effect}")

    def order(self, key: str, old: object, new: object, effect: str) -> None:
        """Refuse a change of the sample order, or announce one that train.accept_new_data allows."""
        if not self.accept:
            self.refuse(key, old, new, f"{effect}: restore it, or set train.accept_new_data=true to continue in the new order")
        self.announce(
            key, old, new, "the sample order is the new one from here on, and what was seen of this epoch may come again"
        )

    def apply(self, key: str, old: object, new: object, rule: Rule) -> None:
        """Do what the rule says of a key that has changed."""
        if rule.kind == "dtype" and new == "auto":
            return
        if rule.kind == "switch" and bool(old) == bool(new):
            self.announce(key, old, new, rule.text)
        elif rule.kind == "switch":
            self.refuse(
                key, old, new, "checkpoints of this run are laid out for it: restore it, or set run.dir to a new folder"
            )
        elif rule.kind in ("refuse", "dtype"):
            self.refuse(key, old, new, rule.text)
        elif rule.kind == "order":
            self.order(key, old, new, rule.text)
        elif rule.kind == "announce":
            self.announce(key, old, new, rule.text)


def compare_keys(old: Mapping[str, Any], new: Mapping[str, Any], changes: Changes) -> None:
    """Compare two configurations key by key, but for the stages. Raises ResumeError."""
    for section in SECTIONS:
        if RULES.get(section) == IGNORE:
            continue
        defaults = section_class(section)().model_dump(mode="json")
        before, now = {**defaults, **(old.get(section) or {})}, {**defaults, **(new.get(section) or {})}
        first, second = flat(before, section), flat(now, section)
        for key in sorted({*first, *second}):
            rule = rule_of(key)
            if rule is not None and first.get(key) != second.get(key):
                changes.apply(key, first.get(key), second.get(key), rule)


def compare_stages(old: CurriculumConfig, new: CurriculumConfig, step: int, changes: Changes) -> None:
    """Compare two counted curricula of a run that has trained `step` steps: what is trained stays, what comes may change. Raises ResumeError."""
    begin = 0
    for number, (was, now) in enumerate(zip(old.stages, new.stages)):
        trained, name = min(was.steps, step - begin), f"curriculum.stages.{number}"
        end = begin + was.steps
        over = end < step or (end == step and now.steps == was.steps)
        if trained > 0:
            if _mix(was) != _mix(now):
                changes.refuse(f"{name}.mix", _mix(was), _mix(now), RULES["curriculum.stages[].mix"].text)
            if now.steps < trained or (over and now.steps != was.steps):
                mend = RULES["curriculum.stages[].steps"].text
                changes.refuse(f"{name}.steps", was.steps, now.steps, f"{mend} ({trained} steps)")
        elif _mix(was) != _mix(now):
            changes.announce(f"{name}.mix", _mix(was), _mix(now), "nothing of this stage is trained")
        if not over:
            for key in Stage.model_fields:
                before, after = getattr(was, key), getattr(now, key)
                if before != after and key not in ("mix", "steps", "tokens"):
                    changes.apply(f"{name}.{key}", before, after, RULES[f"curriculum.stages[].{key}"])
        begin = end
    if sum(stage.steps for stage in old.stages[: len(new.stages)]) < step and len(new.stages) < len(old.stages):
        gone = old.stages[len(new.stages)]
        changes.refuse(f"curriculum.stages.{len(new.stages)}", gone.name, "absent", "restore it: some of it is trained")
    if _lengths(old.stages) != _lengths(new.stages):
        changes.announce(
            "curriculum.stages", _lengths(old.stages), _lengths(new.stages), "the run ends after another number of steps"
        )


def compare_data(saved: TrainState, now: TrainState, step: int, stages: CurriculumConfig, changes: Changes) -> None:
    """Compare the token shards, bucket by bucket. Raises ResumeError.

    stages: the present curriculum, counted. Only a bucket of which a part is trained and more is to come has an order to lose.
    """
    if not saved.contents:  # of an earlier version
        if saved.data_digest != now.data_digest:
            changes.order(
                "token shards and exclusion lists", saved.data_digest[:12], now.data_digest[:12], "their samples have changed"
            )
        return
    past, coming, begin = set[str](), set[str](), 0
    for stage in stages.stages:
        for mix in stage.mix:
            if begin < step:
                past.add(mix.bucket)
            if begin + stage.steps > step:
                coming.add(mix.bucket)
        begin += stage.steps
    for bucket in sorted(coming & saved.contents.keys()):
        old, new = saved.contents[bucket][:12], now.contents[bucket][:12]
        if old != new and bucket in past:
            changes.order(f"token shards of bucket {bucket}", old, new, "its samples have changed")
        elif old != new:
            changes.announce(f"token shards of bucket {bucket}", old, new, "nothing of it is trained")


def _mix(stage: Stage) -> list[str]:
    return [
        f"{mix.bucket}{f':{mix.frames}' if mix.frames else ''} x {mix.batch}"
        + (f" ({mix.weight:g})" if len(stage.mix) > 1 else "")
        for mix in stage.mix
    ]


def _lengths(stages: Sequence[Stage]) -> str:
    return " + ".join(f"{stage.steps} {stage.name}" for stage in stages)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
