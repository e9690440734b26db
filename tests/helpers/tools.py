"""What some tests need beside Python packages: programs of Debian packages, networks that the set-up fetches."""

from __future__ import annotations

import os

import pytest

from tokenizer.evaluation.pretrained import available


def lacking(name: str, packages: str) -> None:
    """End a test that lacks its program: skipped where `make test` runs as it is, failed where `.ci/run` has installed what is needed."""
    message = f"{name} is missing: apt-get install {packages} (.ci/run does)"
    if os.environ.get("VIDEOAR_NO_SKIP") == "1":
        pytest.fail(message)
    pytest.skip(message)


def unfetched(*networks: str) -> bool:
    """Whether a test of these scoring networks is skipped: `make setup` has not fetched them. Where nothing may be skipped it runs, and fails."""
    return os.environ.get("VIDEOAR_NO_SKIP") != "1" and not all(map(available, networks))
