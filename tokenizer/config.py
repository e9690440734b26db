"""The `tokenizer` section: which weights to use, and how a tokenizer is built and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cluster.config import Section
from cluster.config.precision import Dtype


class NetworkConfig(Section):
    """Shape of the causal 3D network; the defaults are Infinity's public image tokenizer, inflated (VideoAR App. A)."""

    bits: int = Field(default=48, ge=8, multiple_of=8)
    """d: bits per latent position, a multiple of 8, so that every position fills whole bytes."""
    width: int = Field(default=128, ge=8)
    """Base channel width."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    """Width multiplier of each level. The spatial stride is patch * 2 ** (levels - 1): 16 with five levels, 8 with four."""
    patch: Literal[1, 2, 4] = 1
    """Side of the pixel squares that are folded into channels at both ends of the network. The public network has 1; 2 leaves
    out the most expensive level, for small machines."""
    blocks: int = Field(default=2, ge=1)
    """Residual blocks per level; the decoder has one more."""
    temporal_stride: Literal[1, 2, 4] = 4
    """Frames per latent frame. Time is halved together with space, at the last down-samplings."""
    middle_attention: bool = False
    """Per-frame attention at the coarsest level; the public image weights have none."""
    groups: int = Field(default=32, ge=1)
    """Groups of GroupNorm, over one frame at a time; a width that they do not divide uses its next smaller divisor."""
    kernel_t: Literal[1, 3] = 3
    """Temporal kernel of the convolutions; 1 together with temporal_stride 1 makes an image tokenizer."""

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent position, along height and width."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))

    def temporal_at(self, level: int) -> bool:
        """Whether the resampling between `level` and the next coarser one also halves time."""
        halvings = {1: 0, 2: 1, 4: 2}[self.temporal_stride]
        last = len(self.multipliers) - 1
        return last - halvings <= level < last

    @model_validator(mode="after")
    def _check_levels(self) -> NetworkConfig:
        if len(self.multipliers) < 3:
            raise ValueError("network.multipliers: at least 3 levels are needed")
        return self


class LossConfig(Section):
    """Weights of the tokenizer's loss (VideoAR Eq. 4); the defaults are those of Infinity's released training scripts."""

    l1: float = Field(default=1.0, ge=0)
    """Weight of the pixel L1 loss."""
    l2: float = Field(default=0.0, ge=0)
    """Weight of the pixel L2 loss; early in training it fits low frequencies faster than L1."""
    hardest: float = Field(default=1.0, gt=0, le=1)
    """Share of each clip's pixels that L1 and L2 are means over, those with the largest errors; 1 = all. Small things on a still
    ground come sooner with less (0.05): over all pixels the ground alone is nearly the best answer."""
    perceptual: float = Field(default=1.0, ge=0)
    """Weight of the perceptual loss."""
    perceptual_net: Literal["none", "lpips-vgg", "lpips-alex"] = "lpips-vgg"
    """Perceptual network; `none` turns the term off."""
    perceptual_frames: int = Field(default=0, ge=0)
    """Frames of each clip that the perceptual loss compares, drawn anew at each step; 0 = all of them."""
    gan: float = Field(default=0.3, ge=0)
    """Weight of the generator's adversarial loss; 0 trains without a discriminator."""
    commitment: float = Field(default=0.25, ge=0)
    """Weight of the commitment loss, multiplied by `quantizer`."""
    entropy: float = Field(default=0.1, ge=0)
    """Weight of the entropy penalty, multiplied by `quantizer`."""
    quantizer: float = Field(default=4.0, ge=0)
    """Common factor of `commitment` and `entropy`."""
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
    """Clips per step, over all ranks."""
    weight: float = Field(default=1.0, gt=0)
    """Relative share of the steps that use this shape."""
    begin: int = Field(default=0, ge=0)
    """First step (from 0) that may use this shape, for example to train on images before videos."""
    end: int | None = Field(default=None, ge=1)
    """Step from which this shape is no longer used; none = used to the end."""


class AugmentConfig(Section):
    """Augmentation of training clips; the defaults change nothing."""

    zoom: float = Field(default=1.0, ge=1, le=4)
    """Largest zoom: the clip shows a random part of the frame, with sides down to 1/zoom of the frame's."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Contrast is multiplied by a factor drawn from 1 - contrast to 1 + contrast."""
    colour: float = Field(default=0.0, ge=0, lt=1)
    """The same for each colour channel separately."""
    brightness: float = Field(default=0.0, ge=0, le=128)
    """An offset drawn from -brightness to +brightness is added, on the scale of 0 to 255."""
    backwards: bool = False
    """Play half of the clips backwards."""

    @property
    def active(self) -> bool:
        """Whether any augmentation is on."""
        return self != AugmentConfig()


class TokenizerTraining(Section):
    """Training of the tokenizer (`videoar tokenizer train`)."""

    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    buckets: tuple[TrainingBucket, ...] = (TrainingBucket(frames=17, height=128, width=128, batch=8),)
    """Shapes of the training clips; each step uses one of them."""
    fps: float = Field(default=8.0, gt=0)
    """Frames per second of the training clips."""
    mirror: bool = True
    """Mirror half of the clips; turn this off to learn a few clips quickly."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation; a small corpus needs it (about zoom 2, contrast 0.3, colour 0.1, brightness 25, backwards)."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate, reached after the warm-up; from there it falls to 0 as a cosine."""
    discriminator_factor: float = Field(default=2.0, gt=0)
    """Learning rate of the discriminator as a multiple of the generator's."""
    warmup: int = Field(default=100, ge=0)
    """Steps over which the learning rate rises from 0."""
    discriminator_start: int = Field(default=1000, ge=0)
    """Step from which the discriminator is trained and the adversarial loss acts."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW betas."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm; larger gradients are scaled down to it."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the exponential moving average of the weights; 0 turns it off."""
    scale_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Probability that a scale, except the last, is dropped from a step."""
    quantizer_dropout: float = Field(default=0.0, ge=0, le=1)
    """Probability that a clip's quantizer stops before its last scale, at one drawn evenly (quantizer dropout of SoundStream, Zeghidour et al.
    2021; InfinityStar's stochastic quantizer depth), so that coarse scales alone show as much as they can hold, and the transformer draws
    what is where before it draws details (docs/results.md). It costs some PSNR of whole clips, and the PSNR of a training step counts the
    clips that were cut short too."""
    multi_scale: bool = True
    """Quantize at all scales; false quantizes at the last one only (the single-scale stage)."""
    single_scale_steps: int = Field(default=0, ge=0)
    """Number of first steps that quantize at the last scale only, before the multi-scale stage of the same run."""
    unquantized_steps: int = Field(default=0, ge=0)
    """Number of first steps that decode the features without quantizing them (the commitment loss already acts): a quick start
    for tiny runs."""
    quantization_ramp: int = Field(default=0, ge=0)
    """Number of steps after `unquantized_steps` over which the quantizer's error grows from none to whole. Things that are small beside
    what stands still turn no bit at first, and a decoder that sees bits alone then forgets them for good (docs/log.md, 2026-11-28)."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    log_every: int = Field(default=10, ge=1)
    """Steps between log lines."""
    dtype: Dtype = "auto"
    """Autocast dtype of the network: bfloat16 where the hardware computes it, else float32 (checkpoints record it).
    Losses and quantizer stay in float32."""
    micro_batch: int = Field(default=0, ge=0)
    """Clips per rank and forward pass; gradients are accumulated over the passes of a step. 0 = all of the rank's clips at once."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage of both engines."""
    workers: int = Field(default=1, ge=1)
    """Decoding threads per rank, which prepare the next batches."""
    init: Path | None = None
    """Tokenizer folder to start from, as written by `videoar tokenizer import` or by another run."""

    @model_validator(mode="after")
    def _check_dropout(self) -> TokenizerTraining:
        if self.quantizer_dropout and not self.multi_scale:
            raise ValueError(
                "training.quantizer_dropout leaves out fine scales, but training.multi_scale is false: there is one scale; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_quantized(self) -> TokenizerTraining:
        before = self.unquantized_steps + self.quantization_ramp
        if before and before >= self.steps:
            raise ValueError(
                f"training.unquantized_steps + quantization_ramp is {before} and training.steps {self.steps}: the tokenizer would never train "
                "with whole quantization; lower the first two, or raise steps"
            )
        return self


class TokenizerConfig(Section):
    """The tokenizer that a job uses, and how one is trained."""

    weights: Path = Path("runs/tokenizer")
    """Folder with tokenizer.json and tokenizer.safetensors; written by training, read by everything else."""
    network: NetworkConfig = NetworkConfig()
    """Shape of the network to train; a trained tokenizer's own shape is in its tokenizer.json."""
    loss: LossConfig = LossConfig()
    """Weights of the loss terms."""
    training: TokenizerTraining = TokenizerTraining()
    """How it is trained."""
    scales: dict[str, tuple[tuple[int, int], ...]] = Field(default_factory=dict)
    """Scale lists that replace the built-in ones, by latent grid such as `8x8`."""

    @model_validator(mode="after")
    def _check_buckets(self) -> TokenizerConfig:
        stride = self.network.spatial_stride
        for bucket in self.training.buckets:
            if bucket.height % stride or bucket.width % stride:
                raise ValueError(
                    f"training bucket {bucket.height}x{bucket.width} is not a multiple of the spatial stride {stride}"
                )
            if self.loss.gan > 0 and min(bucket.height, bucket.width) < 24:
                raise ValueError(
                    f"training bucket {bucket.height}x{bucket.width}: the discriminator needs at least 24x24 pixels"
                )
            if (bucket.frames - 1) % self.network.temporal_stride:
                raise ValueError(f"training bucket of {bucket.frames} frames: use 1 + {self.network.temporal_stride}n frames")
        return self
