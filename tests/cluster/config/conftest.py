"""The configuration file that the tests of this room read."""

from pathlib import Path

import pytest

from tests.helpers.job_config import GOOD


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    return path
