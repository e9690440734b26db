"""Programs of Debian packages that some tests start."""

from __future__ import annotations

import os

import pytest


def lacking(name: str, packages: str) -> None:
    """End a test that lacks its program: skipped where `make test` runs as it is, failed where `.ci/run` has installed what is needed."""
    message = f"{name} is missing: apt-get install {packages} (.ci/run does)"
    if os.environ.get("VIDEOAR_NO_SKIP") == "1":
        pytest.fail(message)
    pytest.skip(message)
