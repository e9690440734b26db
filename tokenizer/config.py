"""The `tokenizer` section: which weights to use, and how the tokenizer's network is built and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cluster.config import Section


class NetworkConfig(Section):
    """The causal 3D network (decisions.md: Infinity's image tokenizer, inflated)."""

    bits: int = Field(default=48, ge=8, multiple_of=8)
    """d: bits a latent position (a multiple of 8, so that positions are whole bytes)."""
    width: int = Field(default=128, ge=8)
    """Base channel width."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    """Width multiplier a level; the spatial stride is patch * 2 ** (levels - 1): five levels f16, four levels f8."""
    patch: Literal[1, 2, 4] = 1
    """Side of the pixel squares folded into channels at both ends of the network: 1 as the public network; 2 saves the
    costliest level on small machines."""
    blocks: int = Field(default=2, ge=1)
    """Residual blocks a level (the decoder has one more)."""
    temporal_stride: Literal[1, 2, 4] = 4
    """Frames a latent frame; temporal stride 2 sits at the last spatial down-samplings."""
    middle_attention: bool = False
    """Per-frame attention in the middle (off in the public image weights)."""
    groups: int = Field(default=32, ge=1)
    """Most groups of GroupNorm, over one frame at a time; a width that they do not divide takes its next smaller divisor."""
    kernel_t: Literal[1, 3] = 3
    """Temporal kernel of the plain convolutions; 1 with temporal_stride 1 is a per-frame image tokenizer."""

    @property
    def spatial_stride(self) -> int:
        """Pixels a latent position along height and width."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))

    def temporal_at(self, level: int) -> bool:
        """Whether the re-sampling between `level` and the next coarser one halves time too."""
        halvings = {1: 0, 2: 1, 4: 2}[self.temporal_stride]
        last = len(self.multipliers) - 1
        return last - halvings <= level < last

    @model_validator(mode="after")
    def _check_levels(self) -> NetworkConfig:
        if len(self.multipliers) < 3:
            raise ValueError("network.multipliers: name at least 3 levels")
        return self


class LossConfig(Section):
    """Weights of the tokenizer's loss (paper Eq. 4; values of decisions.md)."""

    l1: float = Field(default=1.0, ge=0)
    """Weight of the pixel L1 loss."""
    l2: float = Field(default=0.0, ge=0)
    """Weight of the pixel L2 loss; early in training it moves low frequencies faster than L1."""
    perceptual: float = Field(default=1.0, ge=0)
    """Weight of the perceptual loss."""
    perceptual_net: Literal["none", "lpips-vgg", "lpips-alex"] = "lpips-vgg"
    """Perceptual network; `none` turns the term off."""
    perceptual_frames: int = Field(default=0, ge=0)
    """Frames of each clip that the perceptual loss looks at, drawn anew each step; 0 = all of them."""
    gan: float = Field(default=0.3, ge=0)
    """Weight of the generator's adversarial loss; 0 builds no discriminator."""
    commitment: float = Field(default=0.25, ge=0)
    """Weight of the commitment loss, under `quantizer`."""
    entropy: float = Field(default=0.1, ge=0)
    """Weight of the entropy penalty, under `quantizer`."""
    quantizer: float = Field(default=4.0, ge=0)
    """Common factor of commitment and entropy."""
    lecam: float = Field(default=0.001, ge=0)
    """Weight of the LeCAM regularisation of the discriminator."""
    inverse_temperature: float = Field(default=100.0, gt=0)
    """Inverse temperature of the entropy penalty's soft bits."""
    discriminator_width: int = Field(default=128, ge=8)
    """Channels of the discriminator's first layer."""


class TrainingBucket(Section):
    """One shape of training clip."""

    frames: int = Field(ge=1)
    """Pixel frames of a clip: 1 (an image) or 1 + 4n."""
    height: int = Field(ge=8)
    """Pixels."""
    width: int = Field(ge=8)
    """Pixels."""
    batch: int = Field(ge=1)
    """Clips a step over all ranks."""
    weight: float = Field(default=1.0, gt=0)
    """Share of steps that use this shape."""
    begin: int = Field(default=0, ge=0)
    """First step (from 0) that may use this shape: images first, then images and videos."""
    end: int | None = Field(default=None, ge=1)
    """Step from which the shape is used no more; none = to the end."""


class AugmentConfig(Section):
    """How training clips are varied; the defaults leave them as they are."""

    zoom: float = Field(default=1.0, ge=1, le=4)
    """Most enlargement: a random part of the frame, down to 1/zoom of its sides, becomes the clip."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Contrast is multiplied by a number drawn from 1 - this to 1 + this."""
    colour: float = Field(default=0.0, ge=0, lt=1)
    """The same for each colour channel by itself."""
    brightness: float = Field(default=0.0, ge=0, le=128)
    """Levels of 255 that are added, drawn from minus this to this."""
    backwards: bool = False
    """Play half of the clips backwards."""

    @property
    def active(self) -> bool:
        """Whether any clip is changed."""
        return self != AugmentConfig()


class TokenizerTraining(Section):
    """`videoar tokenizer train`."""

    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    buckets: tuple[TrainingBucket, ...] = (TrainingBucket(frames=17, height=128, width=128, batch=8),)
    """Shapes of the training clips; each step takes one of them."""
    fps: float = Field(default=8.0, gt=0)
    """Frames a second of the training clips."""
    mirror: bool = True
    """Mirror half of the clips; turn it off where a few clips are to be learnt in little time."""
    augment: AugmentConfig = AugmentConfig()
    """How clips are varied; a small corpus needs it (about zoom 2, contrast 0.3, colour 0.1, brightness 25, backwards)."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate (cosine to 0 after the warm-up)."""
    discriminator_factor: float = Field(default=2.0, gt=0)
    """Discriminator learning rate as a multiple of the generator's."""
    warmup: int = Field(default=100, ge=0)
    """Warm-up steps; the discriminator starts after `discriminator_start`."""
    discriminator_start: int = Field(default=1000, ge=0)
    """Step from which the adversarial loss acts."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW betas."""
    clip: float = Field(default=1.0, gt=0)
    """Gradient norm limit."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the exponential moving average of the weights; 0 turns it off."""
    scale_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Probability that a scale but the last is left out of a step."""
    multi_scale: bool = True
    """Multi-scale quantisation; false trains the single-scale stage."""
    single_scale_steps: int = Field(default=0, ge=0)
    """First steps that quantise at the last scale only, before the multi-scale stage of the same run."""
    unquantized_steps: int = Field(default=0, ge=0)
    """First steps that pass the features on as they are (the commitment already acts): a quick start for tiny runs."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    log_every: int = Field(default=10, ge=1)
    """Steps between log lines."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Autocast type of the network; losses and quantizer stay in float32."""
    micro_batch: int = Field(default=0, ge=0)
    """Clips of a rank that go through the network at once, gradients adding up; 0 = the rank's whole share."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage of both engines."""
    workers: int = Field(default=1, ge=1)
    """Decoding threads a rank; batches are prepared ahead of the step."""
    init: Path | None = None
    """Start from this tokenizer folder (as `videoar tokenizer import` or a run writes it)."""


class TokenizerConfig(Section):
    """The tokenizer that a job uses, and how to train one."""

    weights: Path = Path("runs/tokenizer")
    """Folder with tokenizer.json and tokenizer.safetensors; written by training, read by everything else."""
    network: NetworkConfig = NetworkConfig()
    """Shape of the network, for training; afterwards tokenizer.json says it."""
    loss: LossConfig = LossConfig()
    """Weights of the losses."""
    training: TokenizerTraining = TokenizerTraining()
    """Training."""
    scales: dict[str, tuple[tuple[int, int], ...]] = Field(default_factory=dict)
    """Scale lists that replace the rule, keyed by latent grid such as `8x8`."""

    @model_validator(mode="after")
    def _check_buckets(self) -> TokenizerConfig:
        stride = self.network.spatial_stride
        for bucket in self.training.buckets:
            if bucket.height % stride or bucket.width % stride:
                raise ValueError(
                    f"training bucket {bucket.height}x{bucket.width} is no multiple of the spatial stride {stride}"
                )
            if self.loss.gan > 0 and min(bucket.height, bucket.width) < 24:
                raise ValueError(
                    f"training bucket {bucket.height}x{bucket.width}: the discriminator takes at least 24x24 pixels"
                )
            if (bucket.frames - 1) % self.network.temporal_stride:
                raise ValueError(f"training bucket of {bucket.frames} frames: take 1 + {self.network.temporal_stride}n frames")
        return self
