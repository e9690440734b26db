"""state.json of a checkpoint: what a run is and how far it has come.

In:  the configuration, the data's digests, the step. Out: a `TrainState`, written and read. What of it may change between two starts
of a run is in resume_rules.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cluster.config import ConfigError


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
    guard: dict[str, Any] = field(default_factory=dict)
    """State of the guard (loop/guard.py)."""
    has_ema: bool = False
    ema_start: float | None = None
    """How much of the moving average is the weights that it began with; None in checkpoints of earlier versions."""
    trained: dict[str, Any] = field(default_factory=dict)
    """What inference needs of the stage (trained_stage.py); empty in checkpoints of earlier versions."""
    contents: dict[str, str] = field(default_factory=dict)
    """Digest of the samples of each bucket, in their order; empty in checkpoints of earlier versions."""

    def write(self, path: Path) -> None:
        """Write state.json."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> TrainState:
        """Read state.json. Raises ResumeError if it is missing or has another format."""
        try:
            plain = json.loads(path.read_text())
            return cls(**{item.name: plain[item.name] for item in fields(cls) if item.name in plain})
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ResumeError(f"{path}: no readable training state ({type(error).__name__}: {error})") from error
