"""Where video is decoded: on the CPU, or by an NVIDIA card's decoder with the frames brought to host memory.

In:  `pipeline.decode_device`: cpu, cuda, cuda:1 (the card's number among those that the process may see).
Out: what `av.open` needs, and which codecs the card had to leave to the CPU; a `DeviceError` where there is no such card.
Called by: pipeline/video/reader.py, pipeline.decoder_child.

Frames come down as NV12 or P010 and go through the same choice, resize and crop as any others (picture.py): matrix, range,
rotation and time stamps travel with them. What a card cannot decode (H.264 in 4:4:4, sizes beyond its limits, AV1, which this
build gives to dav1d) FFmpeg decodes in software; such videos are counted by codec, never passed over in silence.
"""

from __future__ import annotations

import os
from collections import Counter

import av
from av.codec.hwaccel import HWAccel

CPU = "cpu"
_PROBE = "h264"
"""Codec by which a card is tried: every NVDEC has it."""


class DeviceError(RuntimeError):
    """The decoding device cannot be used; the message names the key and the mend. No fault of any video."""


class Device:
    """One decoding device as a process sees it. Opened at each use of a card, so a card that goes away is noticed."""

    def __init__(self, name: str = CPU) -> None:
        self.name = name
        self.software: Counter[str] = Counter()
        """Videos by codec that the card left to the CPU."""
        self._held: object = None

    @property
    def hardware(self) -> bool:
        """Whether a card is asked for."""
        return self.name != CPU

    @property
    def pixel_format(self) -> str:
        """Name of FFmpeg's pixel format of frames that lie on the card."""
        return self.name.partition(":")[0]

    def accelerator(self) -> HWAccel | None:
        """Return what `av.open` takes as `hwaccel`; None for the CPU."""
        if not self.hardware:
            return None
        kind, _, number = self.name.partition(":")
        # The card's primary context is kept by `check`, so that opening a video need not make one.
        return HWAccel(kind, number or "0", allow_software_fallback=True, options={"primary_ctx": "1"})

    def check(self) -> None:
        """Open the card. Raises DeviceError where that does not work."""
        accelerator = self.accelerator()
        if accelerator is None:
            return
        try:
            self._held = accelerator.create(av.Codec(_PROBE, "r"))
        except (OSError, ValueError, av.error.FFmpegError, RuntimeError) as error:
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            cards = "" if seen is None else f", CUDA_VISIBLE_DEVICES is {seen!r}"
            raise DeviceError(
                f"pipeline.decode_device: cannot open {self.name} on {os.uname().nodename} ({error}{cards}); give the workers a card "
                "(pipeline.gpus_per_worker, pipeline.decode_gpus) with NVIDIA's driver, or set pipeline.decode_device=cpu"
            ) from error
