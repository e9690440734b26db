"""The decoding child: `python -m pipeline.decoding.child LIMITS DEVICE`.

In:  one JSON line per request on standard input.
Out: JSON lines on standard output, each followed by the raw bytes that it announces. process.py is the parent's end.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import sys
import threading
import time
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline import video
from pipeline.analysis.scan import Scan, ScanOptions, scan
from pipeline.config import CutConfig, DecodeLimits, FilterConfig
from pipeline.decoding.containment import UNEXPECTED, account
from pipeline.decoding.process import DEVICE, LIMITED_FRAMES, READ
from pipeline.video import Device, DeviceError, Request, VideoError


def _serve(limits: DecodeLimits, device: Device, requests: queue.Queue[bytes], out: BinaryIO) -> None:
    """Answer requests one after the other, forever."""
    size = int(limits.memory_gb * 2**30)
    # A CUDA context reserves far more addresses than it uses; RLIMIT_DATA counts only what it writes to.
    resource.setrlimit(resource.RLIMIT_DATA if device.hardware else resource.RLIMIT_AS, (size, size))
    try:
        device.check()
    except DeviceError as error:
        _answer(out, {"kind": "error", "reason": DEVICE, "message": str(error)})
        return
    _answer(out, {"kind": "ready"})
    while True:
        _answer_request(limits, device, json.loads(requests.get()), out)


def _answer_request(limits: DecodeLimits, device: Device, request: dict[str, Any], out: BinaryIO) -> None:
    """Answer one request."""
    beat = _Heartbeat(out)
    device.software.clear()
    try:
        if request["op"] == "scan":
            options = ScanOptions(
                CutConfig.model_validate(request["cuts"]),
                FilterConfig.model_validate(request["filters"]),
                request["text"],
                limits.max_frames,
                limits.max_pixels,
            )
            pictures = partial(_send, out) if options.cuts.method == "transnet" else None
            path, part = request["path"], request["part"]
            for found in scan(path, options, beat=beat, pictures=pictures, device=device, part=part):
                arrays = np.stack([getattr(found, name) for name in Scan.ARRAYS])
                data = arrays.tobytes() + found.fingerprint.tobytes() + found.inner_fingerprint.tobytes()
                plain = {k: getattr(found, k) for k in ("codec", "width", "height", "seconds", "damage", "crop", "details")}
                header = {"kind": "scan", "frames": len(found.times), "fingerprint": len(found.fingerprint), "scan": plain}
                _answer(out, header, data)
        else:
            clips = [Request(tuple(r["times"]), r["height"], r["width"], r["crop"]) for r in request["requests"]]
            for frames in video.read_clips(request["path"], clips, max_pixels=limits.max_pixels, beat=beat, device=device):
                _answer(out, {"kind": "frames", "shape": frames.shape}, frames.tobytes())
        _answer(out, {"kind": "end", "software": device.software})
    except VideoError as error:
        _answer(out, {"kind": "error", "reason": error.reason, "message": str(error)})
    except DeviceError as error:
        _answer(out, {"kind": "error", "reason": DEVICE, "message": str(error)})
    except MemoryError:
        message = f"{request['path']}: decoding needs more than pipeline.limits.memory_gb = {limits.memory_gb:g} GiB"
        _answer(out, {"kind": "error", "reason": "memory", "message": message})
    except Exception as error:  # noqa: BLE001 - a library's own: the parent makes it the video's outcome, and the child lives on
        _answer(out, {"kind": "error", "reason": UNEXPECTED, "message": f"{request['path']}: {account(error)}"})


def _send(out: BinaryIO, block: NDArray[np.uint8]) -> None:
    _answer(out, {"kind": "pictures", "shape": block.shape}, block.tobytes())


class _Heartbeat:
    """Tells the parent, at most once a second, that frames are still being decoded."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._last = out, time.monotonic()
        self._frames = 0

    def __call__(self) -> None:
        now = time.monotonic()
        self._frames += 1
        if now - self._last >= 1.0 or self._frames % LIMITED_FRAMES == 0:
            self._last = now
            _answer(self._out, {"kind": "beat", "frames": self._frames})


def _answer(out: BinaryIO, header: dict[str, Any], data: bytes = b"") -> None:
    out.write(json.dumps({**header, "size": len(data)}).encode() + b"\n")
    out.write(data)
    out.flush()


def _listen(requests: queue.Queue[bytes]) -> None:
    """Queue the parent's lines; exit at once, even in the middle of a native call, when the parent is gone."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


def main() -> None:
    """Run the child process."""
    limits = DecodeLimits.model_validate_json(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb", buffering=READ)
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    _serve(limits, Device(sys.argv[2]), requests, out)


if __name__ == "__main__":
    main()
