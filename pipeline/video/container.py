"""Files opened as what they are: regular files, by their name, in formats that open nothing else.

In:  the path of a local file. Out: a container of `av`, or a `VideoError`.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import av

DEMUXERS = (
    # By the names of FFmpeg's demuxers: containers, elementary streams, pictures. Playlists and scripts (hls, dash, concat, imf) are not.
    "mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "live_flv", "asf", "asf_o", "ogg", "nut", "mxf",
    "gxf", "rm", "dv", "ivf", "obu", "av1", "h261", "h263", "h264", "hevc", "vvc", "evc", "m4v", "vc1", "vc1test", "dirac", "cavsvideo",
    "avs2", "avs3", "mjpeg", "mjpeg_2000", "mpjpeg", "yuv4mpegpipe", "swf", "nsv", "nuv", "pva", "pmp", "psp", "wtv", "wtv_pipe", "bink",
    "smk", "flic", "film_cpk", "4xm", "roq", "rl2", "vmd", "mve", "ipmovie", "idcin", "lvf", "lxf", "mlv", "cine", "dxa", "viv", "vivo",
    "xmv", "yop", "moflex", "avr", "ogm", "gif", "apng", "webp_anim", "image2", "gif_pipe", "jpeg_pipe", "jpegls_pipe", "jpegxl_pipe",
    "jpegxl_anim", "png_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "pbm_pipe", "pgm_pipe", "ppm_pipe", "pam_pipe", "qoi_pipe",
    "j2k_pipe", "sunrast_pipe", "dpx_pipe", "exr_pipe", "psd_pipe", "sgi_pipe", "xwd_pipe", "pcx_pipe", "pfm_pipe", "hdr_pipe",
)  # fmt: skip
"""Formats that are opened. None of them opens other files, a device or the network."""


class VideoError(ValueError):
    """A video that cannot be used. `reason` is a snake_case word from a bounded set; the message names the file."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoError, (self.reason, str(self))


def open_file(path: str, accelerator: Any) -> Any:
    """Open a file as what it is: by its name, not as a URL, and with no demuxer that opens other files or a device."""
    options = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "file", "pattern_type": "none"}
    return av.open(f"file:{path}", metadata_errors="replace", hwaccel=accelerator, options=options)


def regular(path: str | Path) -> int:
    """Return the size of a file in bytes. Raises OSError, and VideoError for a pipe, socket or device, which may block forever."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise VideoError("unreadable", f"{path}: not a regular file")
    return status.st_size
