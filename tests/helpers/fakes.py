"""Made-up videos whose frames tell their number, a made-up codec, and clips, for the pipeline's tests."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from pipeline.records import Bucket, Clip, clip_key
from pipeline.shards.writer import EncodedClip
from tokenizer.codec import save
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network
from tokenizer.quantization.codec_spec import CodecSpec


def numbered(count: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Frames whose grey level tells their number: frame i is filled with 8 + 7 i (mod 240)."""
    levels = (8 + 7 * np.arange(count)) % 240
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def timed(
    path: Path, times: list[float], *, rotation: int = 0, offset: float = 0.0, size: tuple[int, int] = (48, 64), keys: int = 10
) -> Path:
    """Write a lossless-ish video whose frame i (grey 8 + 7 i) is shown at times[i]."""
    frames = numbered(len(times), *size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "1", "preset": "ultrafast", "bf": "0", "g": str(keys), "sc_threshold": "0"}
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for image, time in zip(frames, times):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (time + offset)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 8) / 7) for frame in frames]


@dataclass(frozen=True)
class FakeEncoded:
    bits: torch.Tensor
    features: torch.Tensor


class FakeCodec:
    """A codec of the contract's shape whose bits are a hash of the clip's pixels: equal clips, equal bits."""

    spec = CodecSpec(bits=8, spatial_stride=8, temporal_stride=4, digest="fake" * 16)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, frames_BTHWC: torch.Tensor) -> FakeEncoded:
        batch, frames, height, width, _ = frames_BTHWC.shape
        self.batches.append(batch)
        latents, rows, columns = self.spec.grid(frames, height, width)
        size = latents * self.spec.frame_bytes(rows, columns)
        out = np.zeros((batch, size), np.uint8)
        for place, clip in enumerate(frames_BTHWC.numpy()):
            out[place] = np.random.default_rng(xxhash.xxh3_64_intdigest(clip.tobytes())).integers(0, 256, size)
        features = torch.from_numpy(out[:, : latents * 8 * rows * columns // 8].astype(np.float32))
        return FakeEncoded(torch.from_numpy(out), features.repeat_interleave(8, 1).reshape(batch, latents, 8, rows, columns))


SHAPE = Bucket(frames=5, height=16, width=16)


def clip(number: int, bucket: Bucket = SHAPE, source: str = "a.mp4", caption: str = "") -> Clip:
    """A planned clip that belongs to bucket shard 0."""
    digest = f"{number:032x}"
    return Clip(
        key=clip_key(digest, float(number), 8.0, bucket),
        source=source,
        source_digest=digest,
        begin=float(number),
        end=number + bucket.frames / 8,
        fps=8.0,
        bucket=bucket,
        caption=caption,
        scores={"luma": 100.0},
        extra={"licence": "CC0"},
        shard=f"{bucket.name}/shard-000000",
    )


def encoded(number: int, **fields: Any) -> EncodedClip:
    """An encoded clip with random bits of the fake codec's size."""
    planned = clip(number, **fields)
    latents, rows, columns = FakeCodec.spec.grid(planned.bucket.frames, planned.bucket.height, planned.bucket.width)
    return EncodedClip(planned, np.random.default_rng(number).bytes(latents * FakeCodec.spec.frame_bytes(rows, columns)))


def tiny_tokenizer(folder: Path) -> Path:
    """Save a real tokenizer with random weights, as small as they get."""
    torch.manual_seed(0)
    config = NetworkConfig(bits=8, width=8, multipliers=(1, 1, 1, 1), blocks=1, groups=4)
    save(folder, config, Network(config).state_dict(), {"made": "random weights for a test"})
    return folder
