"""state.json of a checkpoint: what a run is and how far it has come.

In:  the configuration, the data's digests, the step. Out: a `TrainState`, written and read; what inference needs to know of the stage
that was trained last, which exports hold too. What may change between two starts of a run is in resume_rules.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cluster.config import Config, ConfigError
from pipeline.records import Bucket
from pretrain.data.curriculum import Curriculum, share
from pretrain.engine.config import TrainConfig
from pretrain.objective.config import ObjectiveConfig, stage_objective


class ResumeError(ConfigError):
    """A checkpoint that this configuration cannot continue; the message names the difference and the fix."""


@dataclass(frozen=True)
class TrainedStage:
    """The stage of the last step. A run's configuration names all stages; which of them a checkpoint has seen depends on its step."""

    name: str
    window: int
    """Latent frames of history that a frame attends to; 0 = all."""
    shapes: tuple[str, ...]
    """Shapes that were trained on in this stage, such as f017x128x128; the longest and largest first."""
    fps: float
    """Frames per second of the clips; 0 = not recorded."""
    dtype: str
    """Type of weights and activations in training."""
    condition_drop: float
    """Share of the samples trained without their text; at 0 guidance cannot work."""
    guidance: tuple[float, float, float]
    """The run's own sample.guidance and sample.guidance_end."""

    def plain(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> TrainedStage:
        """Read what `plain` returned. Raises KeyError, TypeError or ValueError for anything else."""
        first, last, end = map(float, plain["guidance"])
        return cls(
            name=str(plain["name"]), window=int(plain["window"]), shapes=tuple(map(str, plain["shapes"])),
            fps=float(plain["fps"]), dtype=str(plain["dtype"]), condition_drop=float(plain["condition_drop"]),
            guidance=(first, last, end),
        )  # fmt: skip

    @classmethod
    def of(cls, config: Config, curriculum: Curriculum, step: int, fps: float) -> TrainedStage:
        """Return the stage of `step`, with the shapes that it has seen by then."""
        at, sample = curriculum.at(step), config.plain()["sample"]
        objective = stage_objective(at.stage, config.get(ObjectiveConfig))
        _, counts = share([mix.weight for mix in at.stage.mix], at.stage_step + 1)
        shapes = {mix.shape: Bucket.parse(mix.shape) for mix, count in zip(at.stage.mix, counts) if count}
        order = sorted(shapes, key=lambda name: (shapes[name].frames, shapes[name].height * shapes[name].width), reverse=True)
        first, last = sample["guidance"]
        return cls(
            name=at.stage.name, window=objective.window, shapes=tuple(order), fps=fps, dtype=config.get(TrainConfig).dtype,
            condition_drop=objective.condition_drop, guidance=(float(first), float(last), float(sample["guidance_end"])),
        )  # fmt: skip


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
    """A `TrainedStage` as plain values; empty in checkpoints of earlier versions."""
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
