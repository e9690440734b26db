"""Decoding in a killable child process with limits on time and memory.

In:  a local path and what is wanted of it: a scan of the whole video, or clips at given times.
Out: a `Scan`, or uint8 frames; a bad video is `VideoError`, a dead child `DecoderDied`, a missing card `DeviceError`.

Native decoders hang and crash on hostile files, and a thread cannot be killed; a process can. The child (child.py) reads one
JSON line per request from its standard input and answers with JSON lines, each followed by the raw bytes that it announces. It
ends when the parent does: its standard input closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.runtime.memory import ENVIRONMENT
from pipeline.analysis.fingerprint import SIDE
from pipeline.analysis.scan import PART, Scan
from pipeline.analysis.shots import marks
from pipeline.analysis.text_detector import text_network
from pipeline.config import CutConfig, DecodeLimits, FilterConfig
from pipeline.video import CPU, DeviceError, Frames, Request, VideoError

if TYPE_CHECKING:
    from pipeline.analysis.transnet import BoundaryDetector, TransNet

LIMITED_FRAMES = 50_000
"""Frames for which `pipeline.limits.seconds` is meant."""
READ = 1 << 20
"""Bytes that are read from the child, or buffered in it, at once."""
_START = 120.0
"""Seconds that a child may take to start."""
DEVICE = "device"
"""Reason of an error that concerns the decoding device, not the video."""


class DecoderDied(RuntimeError):
    """The child ended or was killed. `reason`: time_out, stalled, crash (a signal or an exit of its own) or killed (from outside)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return DecoderDied, (self.reason, str(self))


class DecoderProcess:
    """One child that decodes videos one after the other; a dead child is replaced at the next call. Not thread-safe."""

    def __init__(self, limits: DecodeLimits, device: str = CPU) -> None:
        self.limits, self.device = limits, device
        self.software: Counter[str] = Counter()
        """Videos per codec that the device has left to the CPU (pipeline/video/device.py)."""
        self._child: subprocess.Popen[bytes] | None = None
        self._log: Any = None
        self._buffer = bytearray()
        self._network: TransNet | None = None
        self.deaths = 0
        """Children that have died so far."""
        self.beat: Callable[[], None] | None = None
        """Called for each heartbeat and each answer of the child."""

    @property
    def pid(self) -> int | None:
        """Process id of the living child, None if there is none."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def scan(self, path: str | Path, cuts: CutConfig, filters: FilterConfig | None = None, part: int = PART) -> list[Scan]:
        """Scan a whole video (pipeline.analysis.scan): its parts, of `part` frames. Raises VideoError, DecoderDied, DeviceError."""
        filters = filters or FilterConfig()
        text = text_network() if filters.max_text < 1 else ""
        request = {
            "op": "scan",
            "path": str(path),
            "cuts": cuts.model_dump(),
            "filters": filters.model_dump(),
            "text": text,
            "part": part,
        }
        boundaries = self._boundaries() if cuts.method == "transnet" else None
        parts = []
        for header, data in self._ask(request):
            if header["kind"] == "scan":
                parts.append(_scan(header, data, boundaries, cuts))
                boundaries = None if boundaries is None else self._boundaries()
            elif boundaries is not None:
                boundaries.add(np.frombuffer(data, dtype=np.uint8).reshape(header["shape"]))
        return parts

    def _boundaries(self) -> BoundaryDetector:
        """TransNetV2 runs on this side: the child needs no torch, and can be killed without losing the network."""
        from pipeline.analysis import transnet

        self._network = self._network or transnet.load()
        return transnet.BoundaryDetector(self._network)

    def read(self, path: str | Path, requests: Sequence[Request]) -> Iterator[Frames]:
        """Yield the frames of each request in order (pipeline.video.read_clips). Raises VideoError, DecoderDied, DeviceError."""
        for header, data in self._ask({"op": "read", "path": str(path), "requests": [r._asdict() for r in requests]}):
            yield np.frombuffer(data, dtype=np.uint8).reshape(header["shape"])

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            with contextlib.suppress(BrokenPipeError):
                assert self._child.stdin is not None
                self._child.stdin.close()
            self._kill()

    def __enter__(self) -> DecoderProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        if self._child is not None:
            self._kill()
        # The child must find this package where the parent found it, also in a Ray worker.
        own = {
            name: value for name, value in os.environ.items() if name not in ENVIRONMENT
        }  # a child must stay within its limits
        env = {**own, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        env["OPENBLAS_NUM_THREADS"] = "1"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._buffer.clear()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "pipeline.decoding.child", self.limits.model_dump_json(), self.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
        )
        # Importing may take long on a busy machine, which is not the video's fault.
        while b"\n" not in self._buffer:
            if not self._receive("its start", _START):
                raise DecoderDied("time_out", f"the decoder did not start within {_START:g} s")
        answer = json.loads(self._buffer)
        self._buffer.clear()
        if answer["kind"] == "error":
            self._kill()
            raise DeviceError(answer["message"])
        return self._child

    def _kill(self) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._child = None

    def _ask(self, request: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytes]]:
        child = self._start()
        assert child.stdin is not None
        path, finished, waited = request["path"], False, 0.0
        try:
            try:
                child.stdin.write(json.dumps(request).encode() + b"\n")
                child.stdin.flush()
            except BrokenPipeError:
                self._dead(path)
            while True:
                line, waited = self._line(path, waited)
                header = json.loads(line)
                if self.beat is not None:
                    self.beat()
                if header["kind"] == "beat":
                    if header["frames"] % LIMITED_FRAMES == 0:
                        waited = 0.0
                    continue
                if header["kind"] == "end":
                    finished = True
                    self.software.update(header["software"])
                    return
                if header["kind"] == "error":
                    finished = True
                    if header["reason"] == DEVICE:
                        raise DeviceError(header["message"])
                    raise VideoError(header["reason"], header["message"])
                data, waited = self._bytes(path, header["size"], waited)
                yield header, data
        finally:
            # A caller that stops listening, or a dead child, leaves an answer half read: the next call starts a new child.
            if not finished and self._child is not None:
                self._kill()

    def _line(self, path: str, waited: float) -> tuple[bytes, float]:
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line, waited
            waited = self._fill(path, waited)

    def _bytes(self, path: str, size: int, waited: float) -> tuple[bytes, float]:
        while len(self._buffer) < size:
            waited = self._fill(path, waited)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data, waited

    def _fill(self, path: str, waited: float) -> float:
        """Read what the child has written. Only time spent waiting counts against the limit, not time in which the caller is busy."""
        began = time.monotonic()
        left, stall = self.limits.seconds - waited, self.limits.stall_seconds
        if left > 0 and self._receive(path, min(left, stall)):
            return waited + time.monotonic() - began
        self.deaths += 1
        if left <= stall:
            raise DecoderDied(
                "time_out", f"{path}: decoding took longer than pipeline.limits.seconds = {self.limits.seconds:g} s"
            )
        raise DecoderDied("stalled", f"{path}: no frame decoded for pipeline.limits.stall_seconds = {stall:g} s")

    def _receive(self, path: str, seconds: float) -> bool:
        """Wait for the child to write, and buffer it. Returns False if it writes nothing for `seconds`."""
        assert self._child is not None and self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], seconds)
        if not ready:
            return False
        chunk = os.read(self._child.stdout.fileno(), READ)
        if not chunk:
            self._dead(path)
        self._buffer += chunk
        return True

    def _dead(self, path: str) -> None:
        assert self._child is not None
        code = self._child.wait()
        self.deaths += 1
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
        if code == -signal.SIGKILL:
            raise DecoderDied("killed", f"{path}: the decoder was killed from outside (out of memory?)")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise DecoderDied("crash", f"{path}: the decoder died of {how}{': ' + tail[0] if tail else ''}")


def _scan(header: dict[str, Any], data: bytes, boundaries: BoundaryDetector | None, cuts: CutConfig) -> Scan:
    """Return one part of a scan as the child has sent it, with the cuts of TransNetV2 if it has looked on."""
    count = header["frames"]
    arrays = np.frombuffer(data, dtype=np.float64, count=count * len(Scan.ARRAYS)).reshape(len(Scan.ARRAYS), count)
    fingerprints = np.frombuffer(data, dtype=np.uint8, offset=arrays.nbytes).reshape(-1, SIDE * SIDE)
    whole, inner = np.split(fingerprints, [header["fingerprint"]])
    columns: dict[str, Any] = dict(zip(Scan.ARRAYS, arrays))
    if boundaries is not None:
        found = marks(boundaries.finish()[:count], cuts.probability, cuts.min_frames)
        columns["cut"] = np.where(columns["breaks"] > 0, 1.0, found)
    return Scan(**header["scan"], **columns, fingerprint=whole, inner_fingerprint=inner)
