"""A finished folder for the tests of maintenance."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.plans import finished


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return finished(tmp_path)
