"""The section `curriculum`: stages, what each trains on, and where the token shards are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from cluster.config import Section
from pipeline.records import Bucket

Location = Annotated[Path | str, BeforeValidator(lambda given: given if "://" in str(given) else Path(given))]
"""A local folder, or a URL that fsspec can open (a Path would collapse its two slashes into one)."""


class Mix(Section):
    """One of the shapes that a stage trains on."""

    bucket: str
    """Bucket folder of the shards, such as f017x128x128."""
    frames: int = Field(default=0, ge=0)
    """Use only the first N pixel frames of each clip (1 = images: the first frame of a causal tokenizer is an image); 0 = all."""
    weight: float = Field(default=1.0, gt=0)
    """Relative share of the stage's steps."""
    batch: int = Field(default=0, ge=0)
    """Samples per global batch of this shape (all ranks together). Give either batch or batch_tokens."""
    batch_tokens: float = Field(default=0.0, ge=0)
    """Video tokens per global batch of this shape, text not counted: rounded to the nearest number of samples, at least one."""

    @model_validator(mode="after")
    def _check(self) -> Mix:
        if bool(self.batch) == bool(self.batch_tokens):
            raise ValueError(f"bucket {self.bucket}: give either batch (samples) or batch_tokens")
        bucket = Bucket.parse(self.bucket)
        if self.frames > bucket.frames:
            raise ValueError(f"frames {self.frames} is more than bucket {self.bucket} holds")
        return self

    @property
    def shape(self) -> str:
        """Name of the shape that is trained on: the bucket, or the prefix of it that `frames` selects, such as f001x128x128."""
        bucket = Bucket.parse(self.bucket)
        return bucket.model_copy(update={"frames": self.frames or bucket.frames}).name


class Stage(Section):
    """One stage of the curriculum."""

    name: str
    """Name shown on dashboards and in reports."""
    steps: int = Field(default=0, ge=0)
    """Optimizer steps. Give either steps or tokens."""
    tokens: float = Field(default=0.0, ge=0)
    """Video tokens to train on, text not counted: the stage ends with the first step that reaches this number."""
    mix: tuple[Mix, ...] = Field(min_length=1)
    """Shapes to train on; each step takes one of them, in proportion to their weights."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of this stage; unset: train.learning_rate."""
    window: int | None = Field(default=None, ge=0)
    """Attention window in latent frames; unset: objective.window."""
    frame_mask: float | None = Field(default=None, ge=0, lt=1)
    """Probability that a history frame is hidden; unset: objective.frame_mask."""
    flip_min: float | None = Field(default=None, ge=0, le=1)
    """p_min of the corruption; unset: objective.flip_min."""
    flip_max: float | None = Field(default=None, ge=0, le=1)
    """p_max of the corruption; unset: objective.flip_max."""
    flip_delta: float | None = Field(default=None, ge=0)
    """delta of the corruption, per latent frame; unset: objective.flip_delta."""
    activation_checkpointing: Literal["none", "selective", "full"] | None = None
    """What the backward pass recomputes; unset: train.activation_checkpointing."""
    sequence_parallel: int = Field(default=1, ge=1)
    """Consecutive ranks that share each sequence (Ulysses), for sequences too long for one rank; must divide model.heads. If it
    does not divide the number of ranks, their greatest common divisor is used."""

    @model_validator(mode="after")
    def _check_length(self) -> Stage:
        if bool(self.steps) == bool(self.tokens):
            raise ValueError(f"stage {self.name}: give either steps or tokens")
        return self


class CurriculumConfig(Section):
    """What to train on: stages, one after the other, and the token shards they read."""

    shards: tuple[Location, ...] = ()
    """Folders or URLs of token shards; empty: pipeline.output. They are joined: one epoch visits each sample of all of them once."""
    weights: tuple[float, ...] = ()
    """One weight per folder: each folder then has its own epochs, and samples alternate between folders in these shares (to 1/1000)."""
    validation: tuple[Location, ...] = ()
    """Folders or URLs of held-out token shards for the validation loss; they must hold the stages' buckets."""
    cache: Path = Path("runs/shard-cache")
    """Folder on a local disk of each host that caches shards of URLs while they are read."""
    cache_gb: float = Field(default=100.0, gt=0)
    """Size limit of the cache in GB; train.shuffle_window + 1 shards per bucket in use are enough to fetch each shard once per epoch."""
    stages: tuple[Stage, ...] = ()
    """The stages, in order."""


def ranks_per_sequence(stage: Stage, world: int) -> int:
    """Return how many of `world` ranks share a sequence: what the stage asks for, as far as it divides `world`."""
    return math.gcd(stage.sequence_parallel, world)
