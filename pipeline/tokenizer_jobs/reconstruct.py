"""DOC from pipeline/tokenizer_jobs/main.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.config import Config
from pipeline.corpus.fetch import local
from pipeline.video import iter_frames, write_video
from tokenizer.codec import CodecError, VideoCodec
from tokenizer.config import TokenizerConfig

CHUNK = 32
"""Pixel frames that go through the codec at once; the stream keeps memory flat whatever the length."""


def roundtrip(codec: VideoCodec, frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode one clip of 1 + s*n frames as a stream; same shape."""
    height, width = frames_THWC.shape[1:3]
    encoding = decoding = None
    made: list[torch.Tensor] = []
    for begin in range(0, len(frames_THWC), CHUNK):
        chunk = torch.from_numpy(frames_THWC[begin : begin + CHUNK])[None]
        encoded, encoding = codec.encode_chunk(chunk, encoding, last=begin + CHUNK >= len(frames_THWC))
        if encoded.bits.shape[1]:
            shown, decoding = codec.decode_chunk(encoded.bits, height, width, decoding)
            made.append(shown[0].cpu())
    return torch.cat(made).numpy()


def reconstruct(config: Config, video: str, output: Path, seconds: float = 4.0, size: int = 0) -> float:
    """Write original | reconstruction side by side as an mp4; returns the PSNR in dB.

    size: height and width in pixels; 0 takes the largest training bucket. Raises ValueError or OSError.
    """
    tokenizer = config.get(TokenizerConfig)
    codec = VideoCodec.load(tokenizer.weights, device="cuda" if torch.cuda.is_available() else "cpu")
    fps = tokenizer.training.fps
    largest = max(tokenizer.training.buckets, key=lambda bucket: bucket.height * bucket.width)
    height, width = (size, size) if size else (largest.height, largest.width)
    with local(video) as path:
        wanted = range(max(1, round(seconds * fps)))
        frames = [picture for _, (_, picture) in zip(wanted, iter_frames(path, fps, height, width))]
    stride = codec.spec.temporal_stride
    whole = 1 + (len(frames) - 1) // stride * stride
    if not frames:
        raise CodecError(f"{video}: no frame decodes")
    original = np.stack(frames[:whole])
    again = roundtrip(codec, original)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_video(output, np.concatenate((original, again), axis=2), fps)
    error = float(np.mean((original.astype(np.float64) - again) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-10)))
