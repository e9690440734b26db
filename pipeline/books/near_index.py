"""An index that finds near copies: re-encoded, rescaled or re-cut versions of a video seen before.

In:  fingerprints of videos (8x8 grey pictures, 8 per second) in the order of the corpus.
Out: for a span, the earlier video that shows the same, and how well the two agree.

A hash of each picture, cut into four bands, finds candidates and their shift in time (locality-sensitive hashing); what decides is
the agreement of the pictures themselves. Films of one room look alike picture by picture, so their change over time is compared:
Lin's concordance of the pictures minus their mean over the span.
"""

from __future__ import annotations

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
BUCKET = 200
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
    """Fingerprints seen so far. RATE * SIDE * SIDE = 512 bytes and about 400 bytes of index per second of video.

    This one is in memory; near_copies.py has one on disk, with the same `find`.
    """

    def __init__(self) -> None:
        self._sources: list[str] = []
        self._fingerprints: list[Fingerprint] = []
        self._buckets: dict[int, list[tuple[int, int]]] = {}

    def add(self, source: str, fingerprint: Fingerprint) -> None:
        """Add a video that later ones are compared with."""
        number = len(self._sources)
        self._sources.append(source)
        self._fingerprints.append(fingerprint)
        pictures, found = keys_of(fingerprint[::QUERY_STEP])
        for picture, keys in zip(pictures.tolist(), found.tolist(), strict=True):
            for key in keys:
                bucket = self._buckets.setdefault(key, [])
                if len(bucket) < BUCKET:
                    bucket.append((number, QUERY_STEP * picture))

    def hits(self, key: int) -> NDArray[np.int64]:
        """Return where a key was seen, (positions, 2): number of the fingerprint, picture in it; in the order of the corpus."""
        return np.array(self._buckets.get(key, ()), np.int64).reshape(-1, 2)

    def seen(self, number: int) -> tuple[str, Fingerprint]:
        """Return source and pictures of fingerprint `number`."""
        return self._sources[number], self._fingerprints[number]

    def find(self, fingerprint: Fingerprint) -> tuple[str, float]:
        """Return the earlier source that a span agrees with best, and the concordance (-1 to 1); empty and 0 for none."""
        query = fingerprint[::QUERY_STEP]
        if len(query) < SHORTEST:
            return "", 0.0
        pictures, found = keys_of(query)
        votes = [np.empty((0, 2), np.int64)]
        for place, keys in zip(pictures.tolist(), found.tolist(), strict=True):
            votes += [self.hits(key) - (0, QUERY_STEP * place) for key in keys]
        candidates, counts = np.unique(np.concatenate(votes), axis=0, return_counts=True)
        # Ties are broken by the order of the corpus, in which the candidates are sorted.
        best = ("", 0.0)
        for number, shift in candidates[np.argsort(-counts, kind="stable")[:_CANDIDATES]].tolist():
            source, other = self.seen(number)
            for near in range(shift - QUERY_STEP, shift + QUERY_STEP + 1):
                score = _agreement(query, other, near)
                if score > best[1]:
                    best = (source, score)
        return best


def keys_of(pictures: Fingerprint) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which of some pictures have a hash (flat ones have none), and four keys for each.

    They are bands of 16 bits of a hash: whether each pixel is darker than its right neighbour.
    """
    some = np.flatnonzero(pictures.std(axis=1) >= _FLAT) if len(pictures) else np.empty(0, np.int64)
    square = pictures[some].reshape(-1, SIDE, SIDE)
    bits = np.packbits(square < np.roll(square, -1, axis=2), axis=None).reshape(len(some), -1)
    values = np.ascontiguousarray(bits).view(np.uint16)[:, :_BANDS].astype(np.int64)
    return some, values + (np.arange(_BANDS) << 16)


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
