"""Another try after the decoding child has died: the child may have been killed for a reason that is not the video's.

Planning, captioning and encoding share these rules: `pipeline.limits.attempts` tries in all, and a pass over a video that is
tried again starts from its beginning, so that a clip's pixels always come from the same way of reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from pipeline.decoding.process import DecoderDied

_T = TypeVar("_T")


def retried(call: Callable[[], _T], attempts: int) -> _T:
    """Return what `call` returns; it is called again if the decoder dies. Raises the last DecoderDied."""
    return next(resumed(lambda: iter((call(),)), attempts))


def resumed(read: Callable[[], Iterator[_T]], attempts: int) -> Iterator[_T]:
    """Yield the items of `read()`; if the decoder dies it is called again, and what was already yielded is skipped.

    Raises the last DecoderDied.
    """
    done = 0
    for attempt in range(1, attempts + 1):
        try:
            for number, item in enumerate(read()):
                if number >= done:
                    done += 1
                    yield item
            return
        except DecoderDied:
            if attempt == attempts:
                raise


def quarantine_detail(error: DecoderDied, attempts: int) -> str:
    """Return the detail of the reject of what a decoder died over in each of its attempts."""
    return f"{error}; quarantined after {attempts} attempts"
