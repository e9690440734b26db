"""Work on the books in steps of many independent tasks: who runs them makes no difference to what they write.

In:  a function of a module, and the arguments of each call.
Out: the results in the order of the calls. `serially` runs them in this process; pipeline.workers.book_tasks runs them on Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol


class Runner(Protocol):
    """Runs the calls of one step."""

    def __call__(self, step: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield the results in the order of the calls. step: its name, for progress and messages."""


def serially(step: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Run the calls one after the other in this process."""
    for call in calls:
        yield function(*call)
