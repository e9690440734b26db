"""The `corpus` and `pipeline` sections: which videos, and how they become token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cluster.config import Section
from pipeline.records import Bucket


class CorpusConfig(Section):
    """Raw videos and what is known about them."""

    videos: tuple[str, ...] = ()
    """Files, folders, globs or fsspec URLs; folders are walked in sorted order. A .csv, .jsonl or .parquet entry is a list of
    videos (column `file`, optional `caption`); a .tar entry holds videos with .txt or .json beside them (WebDataset)."""
    extensions: tuple[str, ...] = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".ts", ".flv", ".3gp", ".m4v", ".wmv")
    """File endings that count as videos when a folder is walked (case does not matter)."""
    columns: tuple[str, ...] = ()
    """Columns of that table, such as licence and origin, that are carried into the manifest."""
    captions: str | None = None
    """CSV, JSONL or parquet table with the columns `file` and `caption`; a NAME.txt, or the `caption` of a NAME.json, beside a video wins over it."""


class CutConfig(Section):
    """Shot boundaries."""

    method: Literal["none", "content", "transnet"] = "content"
    """`content` is PySceneDetect's ContentDetector; `transnet` is the network TransNetV2, which finds dissolves too and takes far
    more time; `none` keeps a video whole."""
    threshold: float = Field(default=27.0, gt=0)
    """ContentDetector threshold (mean HSV difference, 0 to 255)."""
    probability: float = Field(default=0.5, gt=0, lt=1)
    """TransNetV2 threshold: probability over which a picture ends a shot or lies in a transition."""
    min_frames: int = Field(default=8, ge=1)
    """Cuts closer together than so many frames count as one (flashes)."""
    margin: float = Field(default=0.0, ge=0)
    """Seconds left out on each side of a cut."""


class FilterConfig(Section):
    """Thresholds; a clip outside one is refused with its scores kept."""

    min_luma: float = Field(default=8.0, ge=0, le=255)
    """Mean luma under which a clip counts as black."""
    min_motion: float = Field(default=0.0, ge=0)
    """Mean absolute luma difference between frames (0 to 255) under which a clip counts as static."""
    min_sharpness: float = Field(default=0.0, ge=0)
    """Variance of the Laplacian under which a clip counts as blurred."""
    min_side: int = Field(default=16, ge=1)
    """Videos whose shorter side is less are refused (pixels)."""
    max_text: float = Field(default=1.0, ge=0, le=1)
    """Share of the picture over which text (subtitles, titles) makes a clip be refused; 1 does not look for text."""
    letterbox: Literal["keep", "crop"] = "keep"
    """`crop` cuts off black bars that a video has throughout, before it is resized; clips.parquet says what was kept."""
    letterbox_luma: float = Field(default=16.0, ge=0, le=255)
    """Luma up to which a row or column counts as black bar."""


class CaptionerConfig(Section):
    """A model that captions clips without a caption of their own."""

    weights: Path | None = None
    """Folder of an image-to-text model of Hugging Face transformers in safetensors; none: clips without caption stay so."""
    prompt: str = ""
    """Text that the model is given with the pictures; models made for captions alone need none."""
    frames: int = Field(default=1, ge=1)
    """Pictures of a clip that a chat model is shown, evenly spread; other models see the middle one of them."""
    side: int = Field(default=384, ge=16)
    """Shorter side of the pictures handed to the model's own preparation (pixels)."""
    batch: int = Field(default=8, ge=1)
    """Clips of one video that are captioned at once."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest caption (tokens)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's weights."""
    gpus: float = Field(default=0.0, ge=0)
    """Ray GPUs that a planning task asks for, to caption on; may be a fraction. 0 captions on the CPU."""


class DecodeLimits(Section):
    """What a decoding child may use before it is killed."""

    seconds: float = Field(default=1800.0, gt=0)
    """Wall-clock seconds of decoding that one video may take in one go."""
    stall_seconds: float = Field(default=60.0, gt=0)
    """Seconds without one more decoded frame after which a decoder counts as hung."""
    memory_gb: float = Field(default=4.0, gt=0)
    """Address space a child, GiB."""
    max_frames: int = Field(default=1_000_000, ge=1)
    """Frames of a video that are probed before it is refused as a decode bomb."""
    max_pixels: int = Field(default=8192 * 8192, ge=1)
    """Pixels a frame."""
    attempts: int = Field(default=2, ge=1)
    """Decoder deaths (kill, crash, time-out) after which a video is quarantined."""


class PipelineConfig(Section):
    """`videoar tokenize`: corpus to shards."""

    output: Path = Path("shards")
    """SHARDS folder."""
    buckets: tuple[Bucket, ...] = (Bucket(frames=17, height=128, width=128),)
    """Shapes that clips are encoded at; one decode of a clip serves all of them."""
    fps: float = Field(default=8.0, gt=0)
    """Frames a second of a clip; frames are chosen by timestamp."""
    clip_stride: float = Field(default=1.0, gt=0, le=1)
    """Distance between the beginnings of clips of one shot, as a share of a clip's length."""
    clips_per_shard: int = Field(default=64, ge=1)
    """Samples a shard."""
    batch: int = Field(default=4, ge=1)
    """Clips that the codec encodes at once; a rule of the shard's own list, so bytes do not depend on timing."""
    threads: int = Field(default=1, ge=1)
    """Torch threads an encoding worker."""
    decoders: int = Field(default=1, ge=1)
    """Decoding children beside an encoding worker: one keeps a CPU worker fed; a GPU that encodes faster than one core decodes
    needs more. Bytes do not depend on it."""
    decode_device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """Decodes video: `cpu`, or `cuda`, the card that Ray gives to a worker (`cuda:1`: the second of several). Frames come down to host
    memory and are resized there, as any others; what the card cannot decode the CPU does."""
    decode_gpus: float = Field(default=0.25, gt=0)
    """Ray GPUs that a planning task asks for where `decode_device` is a card; may be a fraction."""
    workers: int = Field(default=1, ge=1)
    """Encoding actors (one per accelerator, or CPU workers)."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """Ray CPUs an encoding actor asks for."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """Ray GPUs an encoding actor asks for; may be a fraction."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the codec's network."""
    features: bool = False
    """Store the continuous features too (bfloat16)."""
    zstd_level: int = Field(default=3, ge=1, le=22)
    """Compression level of `.zst` members."""
    min_free_gb: float = Field(default=0.5, ge=0)
    """Free disk under which the job stops with a clear line before it writes."""
    cuts: CutConfig = CutConfig()
    """Shot boundaries."""
    filters: FilterConfig = FilterConfig()
    """Quality thresholds."""
    captioner: CaptionerConfig = CaptionerConfig()
    """Captions by a model."""
    limits: DecodeLimits = DecodeLimits()
    """Limits of a decoding child."""
    damaged: Literal["refuse", "prefix"] = "refuse"
    """A video that breaks off: `refuse` it whole, or use the `prefix` that decodes."""
    aspect: Literal["all", "nearest"] = "all"
    """`all` makes a clip of every bucket; `nearest` only of the buckets whose aspect ratio is nearest to the video's."""
    videos_per_task: int = Field(default=16, ge=1)
    """Videos that one planning task looks at."""
    worker_deaths: int = Field(default=3, ge=1)
    """Deaths of an encoding actor over one shard after which the job stops and names the shard."""
    stall_seconds: float = Field(default=3600.0, gt=0)
    """Seconds without one more encoded clip after which an encoding worker counts as hung and is replaced; loading the codec
    counts too. A planning task counts as hung after so long without a decoded frame or a finished video (copying one from a URL
    must fit in); the video it hangs over `limits.attempts` times is quarantined."""
    dedup: bool = True
    """Refuse a file whose content digest was seen before."""
    near_dedup: float = Field(default=0.0, ge=0, le=1)
    """Refuse a span whose pictures agree with an earlier video by at least this much (0.9 finds re-encoded, rescaled and re-cut
    copies); 0 does not look."""

    @property
    def planning_gpus(self) -> float:
        """Ray GPUs that a planning task asks for. One card serves its decoder and its captioner."""
        return max(self.captioner.gpus, 0.0 if self.decode_device == "cpu" else self.decode_gpus)

    @model_validator(mode="after")
    def _cards(self) -> PipelineConfig:
        if self.decode_device != "cpu" and self.gpus_per_worker == 0:
            raise ValueError(
                f"decode_device is {self.decode_device}, but gpus_per_worker is 0, and Ray hides every card from such a worker; "
                "raise gpus_per_worker (a fraction will do), or set decode_device to cpu"
            )
        return self
