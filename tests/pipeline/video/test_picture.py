from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from pipeline import video
from tests.helpers.fakes import timed


def test_resize_is_antialiased_and_crops_the_middle(tmp_path: Path) -> None:
    checks = (np.indices((64, 128)).sum(0) % 2 * 255).astype(np.uint8)
    checks[:, :32] = 0
    checks[:, 96:] = 255
    path = tmp_path / "checks.mp4"
    video.write_video(path, np.broadcast_to(checks[None, :, :, None], (4, 64, 128, 3)), 8)
    image = video.read_frames(path, [0.0], 16, 16)[0].astype(float)
    assert image[:, 1:-1].min() > 100 and image[:, 1:-1].max() < 155, "the middle square of a fine pattern averages to grey"


def test_rotation_and_mirror_are_applied(tmp_path: Path) -> None:
    path = timed(tmp_path / "turned.mp4", [0.0, 0.1], rotation=-90, size=(48, 64))
    info = video.probe(path)
    assert (info.width, info.height, info.rotation) == (48, 64, 90)


def test_rotation_puts_the_top_where_it_belongs(tmp_path: Path) -> None:
    stored = np.zeros((3, 48, 64, 3), np.uint8)
    stored[:, :, :32] = 255  # the left half; turned 90 degrees clockwise it becomes the top half
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(-90)
        for image in stored:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    image = video.read_frames(path, [0.0], 64, 48)[0]
    assert image[:28].mean() > 240 and image[36:].mean() < 15
