"""A planned folder for tests that encode without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.encoding import config, planned


@pytest.fixture
def folder(tmp_path: Path, clips: Path) -> Path:
    """A plan of two real videos in groups of three spans."""
    return planned(tmp_path / "shards", [clips / "bikes.mp4", clips / "carphone_pristine.mp4"], config(tmp_path))
