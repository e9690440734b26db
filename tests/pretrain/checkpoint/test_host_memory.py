"""Memory of the host: exact sizes, and whether there is enough."""

from __future__ import annotations

from pretrain.checkpoint.host_memory import lacks_memory, mapped


def test_mapped_memory_is_of_exactly_the_size_that_was_asked_for() -> None:
    assert [mapped(size).untyped_storage().nbytes() for size in (0, 1, 5000)] == [0, 1, 5000]


def test_a_host_lacks_memory_if_its_ranks_together_do() -> None:
    told = [("a", 100, 900), ("b", 100, 240), ("b", 100, 239), ("c", 100, 120)]
    assert lacks_memory(told) == {"b": (240, 239)}
