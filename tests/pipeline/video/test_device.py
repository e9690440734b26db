"""Decoding by a card: what can be shown without one, and (marked gpu) that its frames are those of the CPU."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.codec.hwaccel import HWAccel
from av.video.reformatter import ColorRange, Colorspace

from pipeline import video
from pipeline.analysis.scan import ScanOptions, scan
from pipeline.config import CutConfig, DecodeLimits, PipelineConfig
from pipeline.decoding.child import _answer_request
from pipeline.decoding.process import DecoderProcess
from pipeline.video import Device, DeviceError, Reader, Request, VideoError
from pipeline.video.picture import picture
from tests.helpers.scans import only

TIMES = tuple(i / 8 for i in range(9))
ABSENT = "cuda:63"


def coloured(path: Path, pixels: str, matrix: int, spread: ColorRange, size: tuple[int, int] = (96, 160)) -> Path:
    """A moving picture of all colours, its matrix and range named in the stream."""
    rows, columns = np.indices(size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, spread
        stream.options = {"crf": "10"}
        for number in range(9):
            image = np.stack([2 * rows + 5 * number, columns + rows, 255 - columns - 3 * number], axis=2).clip(0, 255)
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            # The encoder takes frames as they are, so the conversion is done here, with the matrix that the stream names.
            frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=spread)
            frame.pts, frame.time_base = number, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


COLOURS = [
    ("yuv420p", Colorspace.ITU709, ColorRange.MPEG, "nv12"),
    ("yuv420p", Colorspace.ITU601, ColorRange.MPEG, "nv12"),
    ("yuvj420p", Colorspace.ITU709, ColorRange.JPEG, "nv12"),
    ("yuv420p10le", Colorspace.ITU709, ColorRange.MPEG, "p010le"),
]


@pytest.mark.parametrize(("pixels", "matrix", "spread", "downloaded"), COLOURS)
def test_frames_as_a_card_gives_them_become_the_same_pictures(
    tmp_path: Path, pixels: str, matrix: Colorspace, spread: ColorRange, downloaded: str
) -> None:
    """A card's NV12 or P010 differs from the CPU's planes in their order only; matrix and range are read off the frame."""
    path = coloured(tmp_path / "a.mp4", pixels, int(matrix), spread)
    with Reader(path) as reader:
        for _, frame in reader.frames():
            other = frame.reformat(format=downloaded, src_color_range=spread, dst_color_range=spread)
            other.colorspace, other.color_range = frame.colorspace, frame.color_range
            assert other.format.name == downloaded and int(other.color_range) == int(spread)
            for here, there in (
                (picture(reader.stream, frame, 64, 64), picture(reader.stream, other, 64, 64)),
                (video.thumbnail(frame, 48, 80), video.thumbnail(other, 48, 80)),
                (video.luma(frame), video.luma(other)),
                *(
                    [(picture(reader.stream, reader.cropped(f, "80:48:16:16"), 32, 32) for f in (frame, other))]
                    if frame.pts
                    else []
                ),
            ):
                assert np.abs(here.astype(int) - there.astype(int)).max() <= 2


def test_a_card_that_is_not_there_is_no_fault_of_the_video(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    words = r"pipeline\.decode_device: cannot open cuda:63 on .*CUDA_VISIBLE_DEVICES is '3'.*set pipeline\.decode_device=cpu"
    with DecoderProcess(DecodeLimits(), ABSENT) as child:
        for _ in range(2):
            with pytest.raises(DeviceError, match=words):
                child.scan(clips / "bikes.mp4", CutConfig())
            assert child.pid is None and child.deaths == 0
    with pytest.raises(DeviceError, match=words):
        list(video.read_clips(clips / "bikes.mp4", [Request(TIMES, 32, 32)], device=Device(ABSENT)))
    with pytest.raises(VideoError, match="No such file"):
        list(video.read_clips(clips / "absent.mp4", [Request(TIMES, 32, 32)], device=Device(ABSENT)))
    out = io.BytesIO()  # the card is lost while the child lives
    request = {"op": "read", "path": str(clips / "bikes.mp4"), "requests": [Request(TIMES, 32, 32)._asdict()]}
    _answer_request(DecodeLimits(), Device(ABSENT), request, out)
    assert json.loads(out.getvalue())["reason"] == "device"


def test_what_the_card_cannot_decode_is_decoded_on_the_cpu_and_counted(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of device that FFmpeg knows and its H.264 decoder does not: the way that a codec without NVDEC goes."""
    monkeypatch.setattr(Device, "accelerator", lambda _: HWAccel("qsv", allow_software_fallback=True))
    path, device = clips / "bikes.mp4", Device("cuda")
    wanted = [Request(TIMES, 64, 64), Request(TIMES[:5], 32, 32)]
    found = list(video.read_clips(path, wanted, device=device))
    assert all(np.array_equal(a, b) for a, b in zip(found, video.read_clips(path, wanted), strict=True))
    assert device.software == {"h264": 1}, "once a video"
    here = only(scan(path, ScanOptions()))
    there = only(scan(path, ScanOptions(), device=device))
    assert (
        np.array_equal(here.fingerprint, there.fingerprint)
        and np.array_equal(here.luma, there.luma)
        and device.software == {"h264": 2}
    )
    out = io.BytesIO()
    _answer_request(DecodeLimits(), device, {"op": "read", "path": str(path), "requests": [wanted[0]._asdict()]}, out)
    assert out.getvalue().endswith(b'{"kind": "end", "software": {"h264": 1}, "size": 0}\n'), "of this request alone"


def test_the_cpu_is_the_default_and_counts_nothing(clips: Path) -> None:
    assert PipelineConfig().decode_device == "cpu" and PipelineConfig().planning_gpus == 0 and Device().accelerator() is None
    wanted, device = [Request(TIMES, 64, 64)], Device()
    device.check()
    (found,) = video.read_clips(clips / "bikes.mp4", wanted, device=device)
    with DecoderProcess(DecodeLimits()) as child:
        (other,) = child.read(clips / "bikes.mp4", wanted)
        assert np.array_equal(found, other) and not child.software and not device.software


def test_keys() -> None:
    with pytest.raises(ValueError, match="gpus_per_worker is 0, and Ray hides all GPUs"):
        PipelineConfig(decode_device="cuda")
    for wrong in ("gpu", "cuda:", "cuda:x", "vaapi"):
        with pytest.raises(ValueError, match="decode_device"):
            PipelineConfig(decode_device=wrong, gpus_per_worker=1)
    config = PipelineConfig(decode_device="cuda:1", gpus_per_worker=1, decode_gpus=0.1)
    assert config.planning_gpus == 0.1
    accelerator = Device("cuda:1").accelerator()
    assert accelerator is not None and accelerator.device_id == 1


def test_the_limit_of_a_child_with_a_card_counts_what_is_written_not_what_is_reserved() -> None:
    """CUDA reserves far more addresses than it uses, so such a child is bound by its data."""
    code = (
        "import mmap, resource, numpy as np\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))\n"
        "reserved = mmap.mmap(-1, 2**38, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=0)\n"
        "small = np.ones(2**20)\n"
        "try:\n    np.ones(2**28)\nexcept MemoryError:\n    print('bound')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "bound\n", done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize(("pixels", "matrix", "spread", "downloaded"), COLOURS)
def test_a_card_gives_the_frames_of_the_cpu(
    clips: Path, tmp_path: Path, pixels: str, matrix: Colorspace, spread: ColorRange, downloaded: str
) -> None:
    made = coloured(tmp_path / "a.mp4", pixels, int(matrix), spread, (256, 320))
    for path in (made, clips / "bikes.mp4"):
        with DecoderProcess(DecodeLimits()) as cpu, DecoderProcess(DecodeLimits(), "cuda") as card:
            wanted = [Request(TIMES, 64, 96)]
            (here,), (there,) = cpu.read(path, wanted), card.read(path, wanted)
            assert np.abs(here.astype(int) - there.astype(int)).max() <= 2
            one, other = only(cpu.scan(path, CutConfig())), only(card.scan(path, CutConfig()))
            assert np.array_equal(one.times, other.times) and np.abs(one.luma - other.luma).max() < 1
            if downloaded == "nv12":  # no card decodes H.264 in 10 bits
                assert not card.software, "decoded by the card"
