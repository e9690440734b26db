from __future__ import annotations

from pathlib import Path

import pytest

from cluster.demo.inputs import DemoError
from cluster.demo.run import demo_lock, run
from cluster.demo.steps import Recipe


def test_one_demo_a_folder(tmp_path: Path) -> None:
    with (
        demo_lock(tmp_path),
        pytest.raises(DemoError, match=r"a demo is already running here \(.*process \d+ "),
        demo_lock(tmp_path),
    ):
        pass
    with demo_lock(tmp_path):
        pass


def test_nothing_runs_without_videos(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with pytest.raises(DemoError, match="contains no video file"):
        run(tmp_path / "out", tmp_path / "videos", recipe=lambda config: Recipe((1,), None))
    assert not (tmp_path / "out").exists()
