"""state.json of a checkpoint: what a run is and how far it has come, and whether a configuration may continue it.

In:  the configuration, the data digest, the step. Out: a `TrainState`, written and read; a `ResumeError` that names what differs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cluster.config import ConfigError
from pretrain.data.config import CurriculumConfig
from pretrain.model.config import ModelConfig

FORMER_DEFAULTS: dict[str, Any] = {"compile": False}
"""Defaults that earlier versions had for keys of `model` that say how it is computed, not what it is."""


class ResumeError(ConfigError):
    """A checkpoint that this configuration cannot continue; the message names the difference and the fix."""


@dataclass(frozen=True)
class TrainState:
    """All that a resume needs besides the tensors. The loader's only state is `step`."""

    step: int
    """Steps completed."""
    stage: int
    """Stage of that step, counted from 0."""
    stage_ends: bool
    """Whether it was the last step of its stage (such checkpoints are kept)."""
    tokens: int
    """Tokens trained on so far, text and video, all ranks."""
    world: int
    """Ranks that wrote the checkpoint."""
    zero_stage: int
    optimizer: str
    seed: int
    data_digest: str
    tokenizer: dict[str, Any]
    """CodecSpec of the shards, as plain values."""
    model: dict[str, Any]
    """The `model` section."""
    past: str
    """Digest of the curriculum up to `step` (past_digest)."""
    guard: dict[str, Any] = field(default_factory=dict)
    """State of the guard (loop/guard.py)."""
    has_ema: bool = False

    def write(self, path: Path) -> None:
        """Write state.json."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> TrainState:
        """Read state.json. Raises ResumeError if it is missing or has another format."""
        try:
            plain = json.loads(path.read_text())
            return cls(**{item.name: plain[item.name] for item in fields(cls)})
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ResumeError(f"{path}: no readable training state ({type(error).__name__}: {error})") from error

    def check(self, now: TrainState, *, accept_new_data: bool, folder: Path) -> list[str]:
        """Check that `now`, the state under the present configuration, continues this run. Returns notes on accepted changes.

        Raises ResumeError for a difference; it names the key and both values.
        """

        def refuse(key: str, old: object, new: object, remedy: str) -> None:
            raise ResumeError(f"{folder}: `{key}` was {old} in this run and is {new} now; {remedy}")

        # A key that an older version did not have counts as its default.
        defaults = ModelConfig().model_dump(mode="json")
        old_model, new_model = {**defaults, **self.model}, {**defaults, **now.model}
        for name in sorted({*old_model, *new_model}):
            if name in FORMER_DEFAULTS and old_model[name] == FORMER_DEFAULTS[name] and new_model[name] == defaults[name]:
                continue
            if old_model.get(name) != new_model.get(name):
                refuse(f"model.{name}", old_model.get(name), new_model.get(name), "restore it, or set run.dir to a new folder")
        for key, old, new in (
            ("run.seed", self.seed, now.seed),
            ("tokenizer digest of the shards", self.tokenizer["digest"][:12], now.tokenizer["digest"][:12]),
            ("train.optimizer", self.optimizer, now.optimizer),
            ("deepspeed.zero_optimization.stage", self.zero_stage, now.zero_stage),
            ("train.ema > 0", self.has_ema, now.has_ema),
            ("curriculum.stages (steps already trained)", self.past[:12], now.past[:12]),
        ):
            if old != new:
                refuse(key, old, new, "restore it, or set run.dir to a new folder")
        if self.data_digest != now.data_digest:
            if not accept_new_data:
                refuse(
                    "digest of the token shards and exclusion lists",
                    self.data_digest[:12],
                    now.data_digest[:12],
                    "restore the shards, or set train.accept_new_data=true to continue in the sample order of the new data",
                )
            return [f"the token shards changed; from step {self.step + 1} on, the sample order is that of the new index"]
        return []


def past_digest(config: CurriculumConfig, step: int) -> str:
    """Return the sha256 over the part of a counted curriculum that determines the samples of steps 1..step."""
    plain, left = [], step
    for stage in config.stages:
        if left <= 0:
            break
        plain.append({"mix": [mix.model_dump(exclude={"batch_tokens"}) for mix in stage.mix], "steps": min(left, stage.steps)})
        left -= stage.steps
    text = json.dumps([plain, list(config.weights)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
