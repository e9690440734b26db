"""The `corpus` and `pipeline` sections: which videos to use, and how they become token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cluster.config import Section
from cluster.config.precision import Dtype
from pipeline.records import Bucket


class CorpusConfig(Section):
    """Raw videos and what is known about them."""

    videos: tuple[str, ...] = ()
    """Files, folders, globs or fsspec URLs; folders are walked in sorted order. A .csv, .jsonl or .parquet entry is a list of
    videos (column `file`, optional `caption`); a .tar entry holds videos with .txt or .json files beside them (WebDataset)."""
    extensions: tuple[str, ...] = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".ts", ".flv", ".3gp", ".m4v", ".wmv")
    """File extensions that count as videos when a folder is walked (case-insensitive)."""
    columns: tuple[str, ...] = ()
    """Columns of the captions table or video list, such as licence and origin, that are carried into the table of clips."""
    captions: str | None = None
    """CSV, JSONL or parquet table with the columns `file` and `caption`. A NAME.txt, or the `caption` of a NAME.json, beside a
    video takes precedence."""


class CutConfig(Section):
    """Shot boundaries."""

    method: Literal["none", "content", "transnet"] = "content"
    """`content` is PySceneDetect's ContentDetector; `transnet` is the network TransNetV2, which also finds dissolves but is far
    slower; `none` treats a video as one shot."""
    threshold: float = Field(default=27.0, gt=0)
    """ContentDetector threshold (mean HSV difference, 0 to 255)."""
    probability: float = Field(default=0.5, gt=0, lt=1)
    """TransNetV2 threshold: probability above which a frame ends a shot or lies in a transition."""
    min_frames: int = Field(default=8, ge=1)
    """Cuts closer together than this many frames count as one (flashes)."""
    margin: float = Field(default=0.0, ge=0)
    """Seconds left out on each side of a cut."""


class FilterConfig(Section):
    """Quality thresholds; a clip outside one is refused, and its scores are recorded."""

    min_luma: float = Field(default=8.0, ge=0, le=255)
    """Mean luma below which a clip counts as black."""
    min_motion: float = Field(default=0.0, ge=0)
    """Mean absolute luma difference between frames (0 to 255) below which a clip counts as static."""
    min_sharpness: float = Field(default=0.0, ge=0)
    """Variance of the Laplacian below which a clip counts as blurred."""
    min_side: int = Field(default=16, ge=1)
    """Videos whose shorter side is smaller than this are refused (pixels)."""
    max_text: float = Field(default=1.0, ge=0, le=1)
    """Share of the picture covered by text (subtitles, titles) above which a clip is refused; 1 turns text detection off."""
    max_corrupt: float = Field(default=0.05, ge=0, le=1)
    """Share of a clip's frames that are decoded with errors, or built on such frames, above which it is refused (`damaged`)."""
    max_dropped: float = Field(default=0.1, ge=0, le=1)
    """Share of a file's frames that have no place in its clock, above which its clips are refused (`damaged`)."""
    letterbox: Literal["keep", "crop"] = "keep"
    """`crop` cuts off black bars that a video has throughout, before it is resized; the table of clips records what was kept."""
    letterbox_luma: float = Field(default=16.0, ge=0, le=255)
    """Luma up to which a row or column counts as black."""


class CaptionerConfig(Section):
    """A model that captions clips that have no caption of their own."""

    weights: Path | None = None
    """Folder of a Hugging Face transformers image-to-text model in safetensors. Without one, clips without a caption keep none."""
    prompt: str = ""
    """Prompt given to the model with the pictures; pure captioning models need none."""
    frames: int = Field(default=1, ge=1)
    """Pictures of a clip, evenly spread, that a chat model is shown; other models see the middle one."""
    side: int = Field(default=384, ge=16)
    """Shorter side of the pictures before the model's own preprocessing (pixels)."""
    batch: int = Field(default=8, ge=1)
    """Clips of one video that are captioned in one batch."""
    max_tokens: int = Field(default=64, ge=1)
    """Maximum length of a caption (tokens)."""
    dtype: Dtype = "auto"
    """Data type of the model's weights: bfloat16 where the hardware computes it, else float32."""
    gpus: float = Field(default=0.0, ge=0)
    """Ray GPUs that a planning task requests for captioning; may be a fraction. 0 captions on the CPU."""


class DecodeLimits(Section):
    """Limits of a decoding child process; it is killed when it exceeds one."""

    seconds: float = Field(default=1800.0, gt=0)
    """Wall-clock seconds that decoding 50,000 frames of a video (half an hour) may take; a long film gets as much for each."""
    stall_seconds: float = Field(default=60.0, gt=0)
    """Seconds without a decoded frame after which a decoder counts as hung."""
    memory_gb: float = Field(default=4.0, gt=0)
    """Memory of a child, GiB (address space; data segment where `decode_device` is a GPU)."""
    max_frames: int = Field(default=8_000_000, ge=1)
    """Frames of a video (three days at 30 a second) after which it is refused as a decompression bomb. Memory does not grow with
    them: after each million frames the plan of a video begins a new part, and a new shot."""
    max_pixels: int = Field(default=8192 * 8192, ge=1)
    """Pixels per frame above which a video is refused."""
    attempts: int = Field(default=2, ge=1)
    """Decoder deaths (kill, crash, time-out) after which a video is quarantined."""


class PipelineConfig(Section):
    """`videoar tokenize`: from a corpus to token shards."""

    output: Path = Path("shards")
    """Folder for the shards; it must be shared by all hosts."""
    buckets: tuple[Bucket, ...] = (Bucket(frames=17, height=128, width=128),)
    """Shapes to which clips are encoded; one decode of a clip serves all of them."""
    fps: float = Field(default=8.0, gt=0)
    """Frames per second of a clip; frames are chosen by timestamp."""
    clip_stride: float = Field(default=1.0, gt=0, le=1)
    """Distance between the starts of successive clips of a shot, as a share of the clip length."""
    clips_per_shard: int = Field(default=64, ge=1)
    """Most samples in a shard. A shard is what a worker encodes, and loses when it dies: raise it on GPUs, so that shard_mb decides."""
    shard_mb: int = Field(default=256, ge=1)
    """Size of a shard, in megabytes, at which it ends even with fewer samples; exceeded by one sample at most. It is reckoned from
    the size of the packed tokens, which is known before anything is encoded."""
    batch: int = Field(default=4, ge=1)
    """Clips per codec batch. Batches are formed from a shard's own list, so its bytes do not depend on timing."""
    threads: int = Field(default=1, ge=1)
    """Torch threads per encoding worker."""
    decoders: int = Field(default=1, ge=1)
    """Decoding children per encoding worker: one keeps a CPU worker busy; a GPU that encodes faster than one core decodes needs
    more. The shards' bytes do not depend on it."""
    decode_device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """Where video is decoded: `cpu`, or `cuda`, the GPU that Ray assigns to a worker (`cuda:1`: the second of several). Frames are
    copied to host memory and resized there, as any others; what the GPU cannot decode is decoded on the CPU."""
    decode_gpus: float = Field(default=0.25, gt=0)
    """Ray GPUs that a planning task requests if `decode_device` is a GPU; may be a fraction."""
    workers: int = Field(default=1, ge=1)
    """Encoding workers (Ray actors): one per GPU, or on CPUs."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """Ray CPUs that an encoding worker requests."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """Ray GPUs that an encoding worker requests; may be a fraction."""
    dtype: Dtype = "auto"
    """Data type of the codec's network: bfloat16 where the hardware computes it, else float32. dataset.json records it."""
    features: bool = False
    """Also store the continuous features (bfloat16)."""
    zstd_level: int = Field(default=3, ge=1, le=22)
    """Zstandard compression level of `.zst` members."""
    min_free_gb: float = Field(default=0.5, ge=0)
    """Free disk space, GiB, below which the job stops before it writes."""
    cuts: CutConfig = CutConfig()
    """Shot boundaries."""
    filters: FilterConfig = FilterConfig()
    """Quality thresholds."""
    captioner: CaptionerConfig = CaptionerConfig()
    """Captions by a model."""
    limits: DecodeLimits = DecodeLimits()
    """Limits of a decoding child."""
    damaged: Literal["refuse", "prefix"] = "refuse"
    """What to do with a video that breaks off: `refuse` it whole, or use the `prefix` that decodes."""
    aspect: Literal["all", "nearest"] = "all"
    """`all` makes a clip in every bucket; `nearest` only in the buckets whose aspect ratio is nearest to the video's."""
    videos_per_task: int = Field(default=16, ge=1)
    """Videos per planning task."""
    worker_deaths: int = Field(default=3, ge=1)
    """Deaths of encoding workers over one shard after which the job stops and names the shard."""
    stall_seconds: float = Field(default=3600.0, gt=0)
    """Seconds without an encoded clip after which an encoding worker counts as hung and is replaced; loading the codec must fit
    in. A planning task counts as hung after as long without a decoded frame or a finished video (downloading a video must fit
    in); a video over which tasks hang `limits.attempts` times is quarantined."""
    dedup: bool = True
    """Refuse a video file whose content was seen before."""
    near_dedup: float = Field(default=0.0, ge=0, le=1)
    """Refuse a span that agrees with an earlier video by at least this much (0.9 finds re-encoded, rescaled and re-cut copies);
    0 turns the search off."""

    @property
    def planning_gpus(self) -> float:
        """Ray GPUs that a planning task requests. One GPU serves its decoder and its captioner."""
        return max(self.captioner.gpus, 0.0 if self.decode_device == "cpu" else self.decode_gpus)

    @model_validator(mode="after")
    def _decoding_gpu(self) -> PipelineConfig:
        if self.decode_device != "cpu" and self.gpus_per_worker == 0:
            raise ValueError(
                f"decode_device is {self.decode_device}, but gpus_per_worker is 0, and Ray hides all GPUs from such a worker; "
                "raise gpus_per_worker (a fraction suffices), or set decode_device to cpu"
            )
        return self
