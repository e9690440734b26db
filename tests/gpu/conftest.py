"""One process group for all tests on a card: DeepSpeed cannot join a second one in the same process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.runtime.process_group import Ranks, connect, disconnect


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    yield connect(60)
    disconnect()
