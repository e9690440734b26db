"""An index that finds near copies: re-encoded, rescaled or re-cut versions of a video seen before.

In:  fingerprints of videos (8x8 grey pictures, 8 per second) in the order of the corpus.
Out: for a span, the earlier video that shows the same, and how well the two agree.

A hash of each picture, cut into four bands, finds candidates and their shift in time (locality-sensitive hashing); what decides is
the agreement of the pictures themselves. Films of one room look alike picture by picture, so their change over time is compared:
Lin's concordance of the pictures minus their mean over the span.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.fingerprint import RATE, SIDE, Fingerprint

QUERY_STEP = 2
"""Pictures from one compared picture to the next."""
SHORTEST = 6
"""Compared pictures that a span needs at least."""
CONTEXT = 3 * RATE
"""Pictures to which a shorter span is extended before it is compared."""
_BANDS = 4
"""Parts of a picture's hash; candidates agree in one of them at least."""
_BUCKET = 200
"""Positions that a hash bucket holds; a picture that is everywhere (black, a title) tells nothing anyway."""
_CANDIDATES = 16
"""Shifted videos that are compared with a span, those with the most hits first."""
_FLAT = 3.0
"""Standard deviation of grey levels below which a picture has no hash."""
_STILL = 1.0
"""Mean squared change of grey levels below which nothing moves in two videos."""
_NOISE = 1.0
"""Squared grey levels by which re-encoding changes an 8x8 picture."""


class NearIndex:
    """Fingerprints seen so far. RATE * SIDE * SIDE = 512 bytes and about 400 bytes of index per second of video."""

    def __init__(self) -> None:
        self._sources: list[str] = []
        self._fingerprints: list[Fingerprint] = []
        self._buckets: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def add(self, source: str, fingerprint: Fingerprint) -> None:
        """Add a video that later ones are compared with."""
        number = len(self._sources)
        self._sources.append(source)
        self._fingerprints.append(fingerprint)
        for tick in range(0, len(fingerprint), QUERY_STEP):
            for key in _keys(fingerprint[tick]):
                bucket = self._buckets.setdefault(key, [])
                if len(bucket) < _BUCKET:
                    bucket.append((number, tick))

    def find(self, fingerprint: Fingerprint) -> tuple[str, float]:
        """Return the earlier source that a span agrees with best, and the concordance (-1 to 1); empty and 0 for none."""
        query = fingerprint[::QUERY_STEP]
        if len(query) < SHORTEST:
            return "", 0.0
        votes: Counter[tuple[int, int]] = Counter()
        for place, picture in enumerate(query):
            for key in _keys(picture):
                for number, tick in self._buckets.get(key, ()):
                    votes[number, tick - QUERY_STEP * place] += 1
        best = ("", 0.0)
        # Ties are broken by the order of the corpus, so that the outcome does not depend on hash order.
        for (number, shift), _ in sorted(votes.items(), key=lambda item: (-item[1], item[0]))[:_CANDIDATES]:
            for near in range(shift - QUERY_STEP, shift + QUERY_STEP + 1):
                score = _agreement(query, self._fingerprints[number], near)
                if score > best[1]:
                    best = (self._sources[number], score)
        return best


def _keys(picture: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return four bands of 16 bits: whether each pixel is darker than its right neighbour. Flat pictures have none."""
    if picture.std() < _FLAT:
        return []
    square = picture.reshape(SIDE, SIDE)
    bits = np.packbits(square < np.roll(square, -1, axis=1))
    return [(band, int(value)) for band, value in enumerate(bits.view(np.uint16)[:_BANDS])]


def _agreement(query: Fingerprint, other: Fingerprint, shift: int) -> float:
    places = QUERY_STEP * np.arange(len(query)) + shift
    inside = (places >= 0) & (places < len(other))
    # Four fifths of the span must lie within the other video: less is another cut, not a copy.
    if inside.sum() < max(SHORTEST, 0.8 * len(query)):
        return 0.0
    a, b = query[inside].astype(np.float64), other[places[inside]].astype(np.float64)
    whole = float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    power = float((a * a).mean() + (b * b).mean())
    if power < _STILL:
        # Nothing moves in either: only pictures that agree almost exactly count as the same.
        return whole if whole > 0.995 else 0.0
    # Lin's concordance is 1 - error / power; what re-encoding changes does not count as disagreement.
    error = max(0.0, float(((a - b) ** 2).mean()) - _NOISE)
    return min(whole, 1.0 - error / power)
