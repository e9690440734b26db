"""WebP and H.264 at the coarsest quality that still uses a given number of bits a frame: baselines of proof_tokenizer.py."""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

Coded = tuple[Tensor, float]
"""Clips uint8 (B,T,H,W,3) as they come back, and bits a frame."""


def webp(clips: Tensor, bits: float) -> Coded:
    """Every frame as a WebP picture, at the quality step just above `bits` a frame on the mean."""

    def at(step: float) -> Coded:
        made, size = [], 0
        for frame in clips.flatten(0, 1).numpy():
            data = io.BytesIO()
            Image.fromarray(frame).save(data, "WEBP", quality=int(step), method=6)
            size += data.tell()
            made.append(np.array(Image.open(data).convert("RGB")))
        return torch.from_numpy(np.stack(made)).view_as(clips), 8 * size / len(made)

    return search(at, range(101), bits)


def h264(clips: Tensor, bits: float) -> Coded:
    """Every clip as an H.264 stream (libx264, slow, yuv420p), at the CRF step just above `bits` a frame on the mean."""

    def at(step: float) -> Coded:
        made, size = [], 0
        for clip in clips.numpy():
            data = io.BytesIO()
            with av.open(data, "w", format="h264") as container:
                stream = container.add_stream(
                    "libx264", rate=8, options={"crf": str(-step), "preset": "slow", "x264-params": "info=0"}
                )
                stream.height, stream.width = clips.shape[2:4]
                stream.pix_fmt = "yuv420p"
                for frame in clip:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
            size += data.tell()
            data.seek(0)
            with av.open(data, "r", format="h264") as container:
                made.append(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))
        return torch.from_numpy(np.stack(made)), 8 * size / clips.shape[0] / clips.shape[1]

    return search(at, range(-51, 0), bits)


def search(at: Callable[[float], Coded], steps: range, bits: float) -> Coded:
    """First quality step, by bisection, that uses at least `bits` a frame."""
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if at(steps[middle])[1] >= bits:
            high = middle
        else:
            low = middle + 1
    return at(steps[low])
