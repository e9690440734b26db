"""Where video is decoded: on the CPU, or by the decoder of an NVIDIA GPU with the frames copied to host memory.

In:  `pipeline.decode_device`: cpu, cuda, cuda:1 (the GPU's number among those that the process sees).
Out: what `av.open` needs, and which codecs the GPU had to leave to the CPU; a `DeviceError` if there is no such GPU.

Frames arrive as NV12 or P010 and go through the same choice, resize and crop as any others (picture.py): matrix, range, rotation
and time stamps come with them. What a GPU cannot decode (H.264 in 4:4:4, sizes beyond its limits, AV1, which this build gives to
dav1d) FFmpeg decodes in software; such videos are counted per codec, so that the fallback is never silent.
"""

from __future__ import annotations

import os
from collections import Counter

import av
from av.codec.hwaccel import HWAccel

CPU = "cpu"
_PROBE = "h264"
"""Codec with which a GPU is tried: every NVDEC has it."""


class DeviceError(RuntimeError):
    """The decoding device cannot be used; the message names the key and the fix. It is not the fault of a video."""


class Device:
    """One decoding device as a process sees it. A GPU is opened at each use, so that one that goes away is noticed."""

    def __init__(self, name: str = CPU) -> None:
        self.name = name
        self.software: Counter[str] = Counter()
        """Videos per codec that the GPU left to the CPU."""
        self._held: object = None

    @property
    def hardware(self) -> bool:
        """Whether this is a GPU."""
        return self.name != CPU

    @property
    def pixel_format(self) -> str:
        """Name of FFmpeg's pixel format of frames in GPU memory."""
        return self.name.partition(":")[0]

    def accelerator(self) -> HWAccel | None:
        """Return what `av.open` takes as `hwaccel`; None for the CPU."""
        if not self.hardware:
            return None
        kind, _, number = self.name.partition(":")
        # `check` holds the GPU's primary context, so that opening a video need not create one.
        return HWAccel(kind, number or "0", allow_software_fallback=True, options={"primary_ctx": "1"})

    def check(self) -> None:
        """Open the GPU. Raises DeviceError if that fails."""
        accelerator = self.accelerator()
        if accelerator is None:
            return
        try:
            self._held = accelerator.create(av.Codec(_PROBE, "r"))
        except (OSError, ValueError, av.error.FFmpegError, RuntimeError) as error:
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            cards = "" if seen is None else f", CUDA_VISIBLE_DEVICES is {seen!r}"
            raise DeviceError(
                f"pipeline.decode_device: cannot open {self.name} on {os.uname().nodename} ({error}{cards}); give the workers a GPU "
                "(pipeline.gpus_per_worker, pipeline.decode_gpus) with NVIDIA's driver, or set pipeline.decode_device=cpu"
            ) from error
