"""The `model`, `objective`, `curriculum`, `train`, `sample` and `deepspeed` sections."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from cluster.config import Section


class TrainConfig(Section):
    """The training job."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of the blocks' matrices (DeepSpeed's Muon, ZeRO 1 to 3); all else keeps AdamW, and
    train.clip does not act."""
    muon_factor: float = Field(default=10.0, gt=0)
    """Learning rate of Muon's matrices as a multiple of train.learning_rate (0.2 x sqrt of the longer side gives AdamW's step)."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """Learning rate over the whole curriculum after the warm-up; `wsd` holds, then falls over the last fifth."""
    warmup: int = Field(default=100, ge=0)
    """Warm-up steps."""
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Last learning rate as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW betas."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW weight decay, on matrices only."""
    clip: float = Field(default=1.0, gt=0)
    """Gradient norm limit."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the sharded moving average of the weights; 0 turns it off."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of weights and activations in the step; masters stay in float32."""
    micro_batch: int = Field(default=1, ge=1)
    """Samples a rank runs at once; gradient accumulation makes up the global batch."""
    pack_tokens: int = Field(default=0, ge=0)
    """Token budget of a packed row, which short samples share without seeing each other; 0 = every sample is a row of its own."""
    pack_above: float = Field(default=0.03, ge=0, lt=1)
    """Pack a step when text padding and fill samples would otherwise be more than this share of its positions."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass makes again: `selective` norms, rotation and SwiGLU (matrix products and attention are kept),
    `full` each block from its input."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints; one is also written at the end of each stage."""
    keep_checkpoints: int = Field(default=3, ge=1)
    """Newest checkpoints that are kept (the last of each stage is kept too)."""
    log_every: int = Field(default=1, ge=1)
    """Steps between console lines (every step goes to metrics.jsonl)."""
    sample_every: int = Field(default=0, ge=0)
    """Steps between samples made in the loop on all ranks; 0 = only at the end of each stage when samples > 0."""
    samples: int = Field(default=0, ge=0)
    """Videos made at each such point."""
    stop_after: int = Field(default=0, ge=0)
    """Stop cleanly after this step with a checkpoint, as a preemption would; 0 runs to the end."""
    max_skips: int = Field(default=10, ge=1)
    """Skipped (non-finite) steps in a row after which the job stops."""
    threads: int = Field(default=0, ge=0)
    """Torch threads a rank on CPU; 0 divides the cores among the ranks of a host."""
    prefetch: int = Field(default=2, ge=0)
    """Global batches read ahead."""
    shuffle_window: int = Field(default=16, ge=1)
    """Shards whose rows are shuffled together; each shard is read within one such window an epoch."""
    accept_new_data: bool = False
    """Go on when the index or an exclusion list changed since the checkpoint: from there on the order is the new data's."""
    spike_sigma: float = Field(default=0.0, ge=0)
    """Skip a step whose loss lies so many standard deviations above the last 128; 0 turns it off."""
    deterministic: bool = False
    """Torch's deterministic algorithms only (errors where an operation has none)."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between validation losses; 0 = only at the end of each stage when curriculum.validation is set."""
    validation_samples: int = Field(default=64, ge=1)
    """Samples of each stream that a validation takes."""
    tensorboard: bool = False
    """Also write TensorBoard event files to RUN/tensorboard (needs the package tensorboard)."""
    collective_timeout: float = Field(default=1800.0, gt=0)
    """Seconds after which a collective that some rank does not join ends the job."""


class DeepSpeedConfig(Section):
    """DeepSpeed's own keys, passed through; a key that this program sets itself is refused."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    zero_optimization: dict[str, Any] = Field(default={"stage": 3})
    """DeepSpeed's zero_optimization."""
