from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.decoding.process import DecoderDied
from pipeline.decoding.retry import quarantine_detail, resumed, retried


class Dying:
    """Gives 0 to 4, and dies before item `at` of each of its first `deaths` passes."""

    def __init__(self, deaths: int, at: int) -> None:
        self.passes, self._deaths, self._at = 0, deaths, at

    def read(self) -> Iterator[int]:
        self.passes += 1
        for item in range(5):
            if self.passes <= self._deaths and item == self._at:
                raise DecoderDied("killed", f"death {self.passes}")
            yield item


@pytest.mark.parametrize(("deaths", "at"), [(0, 0), (1, 0), (1, 3), (2, 4)])
def test_a_pass_that_dies_is_repeated_without_repeating_items(deaths: int, at: int) -> None:
    decoder = Dying(deaths, at)
    assert list(resumed(decoder.read, 3)) == [0, 1, 2, 3, 4] and decoder.passes == deaths + 1


def test_the_last_death_is_raised_after_what_was_read() -> None:
    decoder, found = Dying(9, 2), []
    with pytest.raises(DecoderDied, match="death 2") as caught:
        found.extend(item for item in resumed(decoder.read, 2))
    assert decoder.passes == 2 and quarantine_detail(caught.value, 2) == "death 2; quarantined after 2 attempts"
    items = resumed(Dying(9, 2).read, 2)
    assert [next(items), next(items)] == [0, 1], "items are yielded as they come"


def test_a_call_is_repeated() -> None:
    decoder = Dying(1, 0)
    assert retried(lambda: next(decoder.read()), 2) == 0 and decoder.passes == 2
    with pytest.raises(DecoderDied):
        retried(lambda: next(Dying(1, 0).read()), 1)
    with pytest.raises(ZeroDivisionError):
        retried(lambda: 1 // 0, 3)
