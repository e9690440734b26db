"""The `train` and `deepspeed` sections of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from cluster.config import Section
from cluster.config.precision import Dtype


class TrainConfig(Section):
    """The training job."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalizes the updates of the matrices inside the blocks (DeepSpeed's Muon, ZeRO stages 1 to 3); all other
    parameters use AdamW, and train.clip has no effect."""
    muon_factor: float = Field(default=10.0, gt=0)
    """Learning rate of Muon's matrices as a multiple of train.learning_rate (0.2 x sqrt of the longer side matches AdamW's step)."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """Learning rate after the warm-up, over the whole curriculum; `wsd` (warm-up, stable, decay) decays over the last fifth."""
    warmup: int = Field(default=100, ge=0)
    """Warm-up steps."""
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate as a fraction of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW betas."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW weight decay, on matrices only."""
    clip: float = Field(default=1.0, gt=0)
    """Maximum gradient norm; larger gradients are scaled down to it."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the exponential moving average (EMA) of the weights, sharded over the ranks; it warms up as (1 + step) / (10 + step). 0
    disables it."""
    dtype: Dtype = "auto"
    """Data type of weights and activations in a step: bfloat16 where the hardware computes it, else float32 (checkpoints
    record it); master weights stay in float32."""
    micro_batch: int = Field(default=1, ge=1)
    """Samples per rank in one forward pass; gradient accumulation makes up the rest of the global batch."""
    pack_tokens: int = Field(default=0, ge=0)
    """Token budget of a packed row, which short samples share without attending to each other; 0 = one sample per row."""
    pack_above: float = Field(default=0.03, ge=0, lt=1)
    """Pack a step if text padding and fill samples would otherwise take more than this fraction of its positions."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass recomputes: `selective` recomputes norms, rotary embedding and SwiGLU (matrix products and attention
    are kept), `full` recomputes each block from its input."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints; one is also written at the end of each stage."""
    keep_checkpoints: int = Field(default=3, ge=1)
    """How many of the newest checkpoints to keep (the last one of each stage is also kept)."""
    log_every: int = Field(default=1, ge=1)
    """Steps between console lines (metrics.jsonl gets every step)."""
    sample_every: int = Field(default=0, ge=0)
    """Steps between videos sampled during training, on all ranks; 0 = only at the end of each stage, if samples > 0."""
    samples: int = Field(default=0, ge=0)
    """Videos sampled at each such point."""
    stop_after: int = Field(default=0, ge=0)
    """Write a checkpoint after this step and stop, as on preemption; 0 runs to the end."""
    max_skips: int = Field(default=10, ge=1)
    """Consecutive skipped steps (non-finite or a loss spike) after which the job stops."""
    threads: int = Field(default=0, ge=0)
    """Torch threads per rank on CPU; 0 divides the cores among the ranks of a host."""
    prefetch: int = Field(default=8, ge=0)
    """Global batches to prefetch, in two blocks: samples of neighbouring steps are read together. 0: each when it is asked for."""
    shuffle_window: int = Field(default=16, ge=1)
    """Shards whose rows are shuffled together; in an epoch, each shard is read within one such window."""
    accept_new_data: bool = False
    """Resume even if the index or an exclusion list changed since the checkpoint: from there on, the sample order follows the
    new data."""
    start_over: bool = False
    """Begin at step 1 although the run folder holds checkpoints of before this was set: they are set aside, with their metrics."""
    spike_sigma: float = Field(default=0.0, ge=0)
    """Skip a step whose loss is more than this many standard deviations above the mean of the last 128; 0 disables it."""
    deterministic: bool = False
    """Use only torch's deterministic algorithms (an operation without one raises an error)."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between validations; 0 = only at the end of each stage, if curriculum.validation is set."""
    validation_samples: int = Field(default=64, ge=1)
    """Samples per validation of each bucket that the stage trains on."""
    compile_cache: Path | None = None
    """Folder where compiled kernels survive restarts; null is RUN/compiled. If set, TORCHINDUCTOR_CACHE_DIR wins."""
    tensorboard: bool = False
    """Also write TensorBoard event files to RUN/tensorboard (needs the package tensorboard)."""
    collective_timeout: float = Field(default=1800.0, gt=0)
    """Seconds a collective operation may wait for a rank before the job fails."""


class DeepSpeedConfig(Section):
    """DeepSpeed's own keys, passed through; a key that this program sets itself is an error."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    zero_optimization: dict[str, Any] = Field(default={"stage": 3})
    """DeepSpeed's zero_optimization."""
