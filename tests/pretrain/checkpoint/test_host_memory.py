"""Memory of the host: exact sizes, and what is free."""

from __future__ import annotations

from pathlib import Path

import psutil

from pretrain.checkpoint.host_memory import free_memory, lacks_memory, mapped


def test_mapped_memory_is_of_exactly_the_size_that_was_asked_for() -> None:
    assert [mapped(size).untyped_storage().nbytes() for size in (0, 1, 5000)] == [0, 1, 5000]


def test_a_host_lacks_memory_if_its_ranks_together_do() -> None:
    told = [("a", 100, 900), ("b", 100, 240), ("b", 100, 239), ("c", 100, 120)]
    assert lacks_memory(told) == {"b": (240, 239)}


def test_free_memory_knows_the_limit_of_a_container(tmp_path: Path) -> None:
    assert 0 < free_memory(tmp_path) <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 1000
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4500\n")
    (tmp_path / "memory.stat").write_text("anon 4000\ninactive_file 300\n")
    assert free_memory(tmp_path) == 800
