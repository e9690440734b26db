"""The `model`, `objective`, `curriculum`, `train`, `sample` and `deepspeed` sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from cluster.config import Section
from pipeline.records import Bucket

Location = Annotated[Path | str, BeforeValidator(lambda given: given if "://" in str(given) else Path(given))]
"""A local folder, or a URL that fsspec knows (a Path would fold its two slashes into one)."""


class ModelConfig(Section):
    """The VideoAR transformer (paper 4.2, decisions.md "Transformer")."""

    layers: int = Field(default=24, ge=1)
    """Blocks."""
    width: int = Field(default=1536, ge=8)
    """Model width C."""
    heads: int = Field(default=12, ge=1)
    """Attention heads; width / heads is the head dimension."""
    ffn: int = Field(default=0, ge=0)
    """Hidden width of SwiGLU; 0 takes 8/3 of the width, rounded up to a multiple of 64."""
    qk_norm: bool = True
    """RMSNorm on queries and keys."""
    rope_base: float = Field(default=10_000.0, gt=1)
    """Base of the rotary frequencies."""
    rope_split: tuple[float, float, float] = (0.25, 0.375, 0.375)
    """Share of the head's frequency pairs for t, h, w."""
    rope: Literal["multiscale", "flat"] = "multiscale"
    """`multiscale` is Multi-scale Temporal RoPE (Eq. 7); `flat` is 1D RoPE over the sequence, for ablation."""
    rope_spatial: Literal["raw", "aligned"] = "raw"
    """Spatial index: raw grid index at each scale (Eq. 7), or rescaled to the largest grid."""
    scale_embedding: bool = True
    """Learned embedding a scale (s_k)."""
    max_scales: int = Field(default=16, ge=1)
    """Rows of the scale embedding."""
    input_resize: Literal["linear", "area"] = "linear"
    """How accumulated features become a scale's input: `linear` as Infinity trains (Eq. 6), or `area` averages."""
    null_token: bool = True
    """A learned token that stands for an absent text; guidance needs it."""
    text_tokenizer: Literal["bytes"] | Path = "bytes"
    """`bytes`, or the path of a Hugging Face tokenizers JSON file."""
    text_length: int = Field(default=64, ge=1)
    """Longest text in tokens; longer captions are cut in training and refused in sampling."""
    attention: Literal["auto", "blocks", "flex", "dense"] = "auto"
    """Attention path: `blocks` skips what the mask forbids (CPU), `flex` is FlexAttention (GPU), `dense` the reference."""

    compile: bool = False
    """Compile the element-wise parts of a block with torch.compile: faster steps, some tens of seconds at the start, and a C++ compiler on a CPU."""

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must divide into {self.heads} heads of even dimension")
        if abs(sum(self.rope_split) - 1) > 1e-6:
            raise ValueError(f"rope_split must add up to 1, not {sum(self.rope_split)}")
        return self


class ObjectiveConfig(Section):
    """Corruption, masks and loss weights."""

    flip_min: float = Field(default=0.0, ge=0, le=1)
    """p_min of Eq. 8."""
    flip_max: float = Field(default=0.25, ge=0, le=1)
    """p_max of Eq. 8; 0 with flip_min and flip_delta 0 turns corruption off."""
    flip_delta: float = Field(default=0.01, ge=0)
    """delta of Eq. 8, a latent frame."""
    flip_time_dependent: bool = True
    """Ratios grow with time (false = the same range for every frame; ablation)."""
    flip_inherit: bool = True
    """A frame's first scale starts at the previous frame's last ratio (ablation)."""
    requantise: bool = True
    """Labels are re-quantised against the corrupted history (false = the stored bits; ablation)."""
    window: int = Field(default=0, ge=0)
    """Latent frames of history that a frame sees; 0 = all."""
    frame_mask: float = Field(default=0.0, ge=0, lt=1)
    """p_mask of Eq. 9: probability that a history frame is hidden, drawn a sample."""
    condition_drop: float = Field(default=0.1, ge=0, lt=1)
    """Probability that the text is replaced by the learned null token."""
    scale_weights: Literal["sqrt-area", "uniform"] = "sqrt-area"
    """Weight of a token's loss: sqrt(area_K / area_k), or 1."""


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


class SampleConfig(Section):
    """`videoar sample` and samples in the loop."""

    guidance: tuple[float, float] = (1.0, 5.0)
    """Guidance of each frame's first scale: at the first frame, at the last frame (linear between)."""
    guidance_end: float = Field(default=10.0, ge=0)
    """Guidance of each frame's last scale (linear over the scales of a frame)."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the bit logits; 0 takes the likelier bit."""
    seed: int = 0
    """Seed of the samples."""
    fps: float = Field(default=8.0, gt=0)
    """Frames a second of the written videos."""
