"""What inference needs to know of the stage that a checkpoint was trained in; state.json and model.json hold it.

In:  the configuration of the run, its counted curriculum, the last step. Out: a `TrainedStage`.

A run's configuration names all stages; which of them a checkpoint has seen depends on its step alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.config import Config
from pipeline.records import Bucket
from pretrain.data.curriculum import Curriculum, share
from pretrain.engine.config import TrainConfig
from pretrain.objective.config import ObjectiveConfig, stage_objective


@dataclass(frozen=True)
class TrainedStage:
    """The stage of the last step."""

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
