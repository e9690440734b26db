"""Records that cross room borders: what is planned (`Clip`), refused (`Reject`), and read by training (`TokenSample`)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import xxhash
from pydantic import BaseModel, ConfigDict, Field

_BUCKET = re.compile(r"^f(\d{3,})x(\d+)x(\d+)$")


class BucketError(ValueError):
    """A name that is not a bucket's; the message names it and the form."""


class Bucket(BaseModel):
    """One clip shape: frames x height x width, in pixels of the decoded clip."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    frames: int = Field(ge=1)
    """Pixel frames: 1 (an image) or 1 + 4n."""
    height: int = Field(ge=1)
    """Pixels."""
    width: int = Field(ge=1)
    """Pixels."""

    @property
    def name(self) -> str:
        """Folder name, such as f017x128x128."""
        return f"f{self.frames:03d}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, name: str) -> Bucket:
        """Read a folder name. Raises BucketError for anything else."""
        match = _BUCKET.match(name)
        if match is None:
            raise BucketError(f"`{name}` is not a bucket name; write f<frames>x<height>x<width>, such as f017x128x128")
        frames, height, width = (int(part) for part in match.groups())
        return cls(frames=frames, height=height, width=width)


@dataclass(frozen=True)
class Clip:
    """One planned clip: what to decode, and to which shape. A row of the table of clips."""

    key: str
    """Sample key (`clip_key`): 32 hex digits."""
    source: str
    """Path or URL of the video, as the corpus names it."""
    source_digest: str
    """xxh3-128 (hex) over the video file's bytes."""
    begin: float
    """Time of the first frame, seconds from the video's first frame."""
    end: float
    """Time just after the last frame, seconds."""
    fps: float
    """Frames per second of the clip."""
    bucket: Bucket
    """Shape."""
    caption: str = ""
    """Text; empty if none is known."""
    scores: dict[str, float] = field(default_factory=dict)
    """Scores of the filters."""
    crop: str = ""
    """The part of the stored picture that is used, `W:H:X:Y` in pixels before rotation; empty for all of it."""
    shard: str = ""
    """The shard that holds the clip, `bucket/shard-000000`."""
    extra: dict[str, str] = field(default_factory=dict)
    """Columns carried over from the corpus table, such as licence and origin."""

    def plain(self) -> dict[str, Any]:
        """Return JSON values; `Clip.parse` reads them back."""
        return {**asdict(self), "bucket": self.bucket.name}

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> Clip:
        """Read `plain()`."""
        return cls(**{**plain, "bucket": Bucket.parse(plain["bucket"])})


@dataclass(frozen=True)
class SourceVideo:
    """One video of the corpus, before anything of it has been read."""

    source: str
    """Path or URL, as the corpus names it."""
    caption: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    """Why it cannot be used, found when the corpus was listed (`bad_name`); empty for none."""


@dataclass(frozen=True)
class Reject:
    """One refused video or clip. A row of the table of rejects."""

    source: str
    stage: str
    """probe, filters, dedup, plan, encode or exclude."""
    reason: str
    """Short snake_case word from a bounded set, so that it can be a metric label."""
    detail: str = ""
    """The whole message."""
    begin: float | None = None
    """Seconds; None for a whole video."""
    end: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    key: str = ""
    """Sample key of a planned clip that was refused; empty for whole videos and for spans that were never planned."""


@dataclass(frozen=True)
class VideoPlan:
    """The outcome of planning one video: clips, rejects or both; never neither."""

    source: str
    digest: str
    """xxh3-128 (hex) over the file's bytes; empty if it cannot be read."""
    clips: tuple[Clip, ...]
    """Clips without a shard yet, in order of begin, then of the configuration's buckets."""
    rejects: tuple[Reject, ...]
    fingerprints: tuple[bytes, ...] = ()
    """The video's fingerprint (pipeline/analysis/fingerprint.py), zlib-compressed, and a second one without black bars if it has
    any; empty if near copies are not looked for."""

    def plain(self) -> dict[str, Any]:
        """Return JSON values; `VideoPlan.parse` reads them back."""
        return {
            "source": self.source,
            "digest": self.digest,
            "clips": [clip.plain() for clip in self.clips],
            "rejects": [asdict(reject) for reject in self.rejects],
            "prints": [base64.b64encode(one).decode() for one in self.fingerprints],
        }

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> VideoPlan:
        """Read `plain()`."""
        clips = tuple(Clip.parse(clip) for clip in plain["clips"])
        rejects = tuple(Reject(**reject) for reject in plain["rejects"])
        fingerprints = tuple(base64.b64decode(one) for one in plain["prints"])
        return cls(plain["source"], plain["digest"], clips, rejects, fingerprints)


@dataclass(frozen=True)
class TokenSample:
    """One sample of a shard, as training reads it."""

    key: str
    bits: bytes
    """Packed bits, uncompressed: in order of frame, scale, row, column, bit; little-endian bits in a byte."""
    bucket: Bucket
    caption: str
    meta: dict[str, Any]
    """The sample's KEY.json."""
    features: bytes | None = None
    """Optional bfloat16 features, shape (latent frames, d, h, w), row-major."""


class PartReport(NamedTuple):
    """What a planning task reports to the driver about its part: counts only."""

    videos: int
    clips: int
    decoder_deaths: int
    software: dict[str, int]
    """Videos per codec that `pipeline.decode_device` left to the CPU."""


def clip_key(digest: str, begin: float, fps: float, bucket: Bucket, copy: int = 0) -> str:
    """Return the sample key: 32 hex digits of xxh3-128 over content digest, begin, fps and bucket (and the number of the copy)."""
    text = f"{digest}|{begin:.6f}|{fps:.6f}|{bucket.name}" + (f"|{copy}" if copy else "")
    return xxhash.xxh3_128_hexdigest(text.encode())


def clip_times(clip: Clip) -> tuple[float, ...]:
    """Return the time of each frame of a clip, seconds from the video's first frame."""
    return tuple(clip.begin + number / clip.fps for number in range(clip.bucket.frames))
