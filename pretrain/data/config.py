"""DOC from pretrain/engine/config.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from cluster.config import Section
from pipeline.records import Bucket
from pretrain.objective.config import ObjectiveConfig

Location = Annotated[Path | str, BeforeValidator(lambda given: given if "://" in str(given) else Path(given))]
"""A local folder, or a URL that fsspec knows (a Path would fold its two slashes into one)."""


class Mix(Section):
    """One shape that a stage trains on."""

    bucket: str
    """Bucket folder of the shards, such as f017x128x128."""
    frames: int = Field(default=0, ge=0)
    """Use only the first so many pixel frames (1 = images: the causal prefix of a video is an image); 0 = all."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the stage's steps."""
    batch: int = Field(default=0, ge=0)
    """Samples a global batch of this shape (all ranks together); or say batch_tokens."""
    batch_tokens: float = Field(default=0.0, ge=0)
    """Video tokens a global batch of this shape, text not counted: as many samples as come nearest, one at least."""

    @model_validator(mode="after")
    def _check_bucket(self) -> Mix:
        if bool(self.batch) == bool(self.batch_tokens):
            raise ValueError(f"bucket {self.bucket}: give either batch (samples) or batch_tokens")
        bucket = Bucket.parse(self.bucket)
        if self.frames > bucket.frames:
            raise ValueError(f"frames {self.frames} is more than bucket {self.bucket} holds")
        return self

    @property
    def shape(self) -> str:
        """Name of the shape that is trained: the bucket's, or the prefix of it that is used, such as f001x128x128."""
        bucket = Bucket.parse(self.bucket)
        return bucket.model_copy(update={"frames": self.frames or bucket.frames}).name


class Stage(Section):
    """One stage of the curriculum."""

    name: str
    """Name on dashboards and in reports."""
    steps: int = Field(default=0, ge=0)
    """Optimizer steps; or say tokens."""
    tokens: float = Field(default=0.0, ge=0)
    """Video tokens to train on, text not counted: the stage takes as many steps as first reach it."""
    mix: tuple[Mix, ...] = Field(min_length=1)
    """Shapes; each step takes one of them, by weight."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of this stage; empty keeps train.learning_rate."""
    window: int | None = Field(default=None, ge=0)
    """Attention window in latent frames; empty keeps objective.window."""
    frame_mask: float | None = Field(default=None, ge=0, lt=1)
    """Random frame mask; empty keeps objective.frame_mask."""
    flip_min: float | None = Field(default=None, ge=0, le=1)
    """p_min of the corruption; empty keeps objective.flip_min."""
    flip_max: float | None = Field(default=None, ge=0, le=1)
    """p_max of the corruption; empty keeps objective.flip_max."""
    flip_delta: float | None = Field(default=None, ge=0)
    """delta of the corruption, a latent frame; empty keeps objective.flip_delta."""
    activation_checkpointing: Literal["none", "selective", "full"] | None = None
    """What the backward pass makes again; empty keeps train.activation_checkpointing."""
    sequence_parallel: int = Field(default=1, ge=1)
    """Consecutive ranks that share each sequence (Ulysses), for sequences too long for one; it must divide model.heads. At a
    number of ranks that it does not divide, their greatest common divisor is taken."""

    @model_validator(mode="after")
    def _check_length(self) -> Stage:
        if bool(self.steps) == bool(self.tokens):
            raise ValueError(f"stage {self.name}: give either steps or tokens")
        return self

    def objective(self, base: ObjectiveConfig) -> ObjectiveConfig:
        """Return `base` with this stage's window, mask and corruption."""
        asked = {name: getattr(self, name) for name in ("window", "frame_mask", "flip_min", "flip_max", "flip_delta")}
        return base.model_copy(update={name: value for name, value in asked.items() if value is not None})


class CurriculumConfig(Section):
    """Stages, one after the other."""

    shards: tuple[Location, ...] = ()
    """SHARDS folders or URLs; empty takes pipeline.output. Joined: one epoch visits each sample of all of them once."""
    weights: tuple[float, ...] = ()
    """One weight a folder: each then keeps its own epochs, and the folders alternate in these shares (to 1/1000)."""
    validation: tuple[Location, ...] = ()
    """Held-out SHARDS folders or URLs for the validation loss; they must hold the stages' buckets."""
    cache: Path = Path("runs/shard-cache")
    """Local folder that holds shards of URLs while they are read; one a host, on a local disk."""
    cache_gb: float = Field(default=100.0, gt=0)
    """Most GB of tars in the cache; train.shuffle_window + 1 shards of each bucket in use are enough to fetch each once an epoch."""
    stages: tuple[Stage, ...] = ()
    """The curriculum."""


def size_of(stage: Stage, world: int) -> int:
    """Return how many ranks share a sequence: what the stage asks for, as far as it divides the number of ranks."""
    return math.gcd(stage.sequence_parallel, world)
