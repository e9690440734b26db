"""Distances of two sets of features that `tokenizer.evaluation.metrics.frechet` does not have: KVD, and FVD without the bias of few clips.

In:  features float64 (N, F) of each set.
Out: numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenizer.evaluation.metrics import frechet
from tokenizer.evaluation.pretrained import ScoreError

Features = NDArray[np.float64]

FEWEST = 16
"""Clips on each side that an extrapolation takes at least."""
_SIZES, _DRAWS = 8, 6


def kernel_distance(a_NF: Features, b_NF: Features) -> float:
    """Return the squared maximum mean discrepancy under the kernel (x y / F + 1)^3, unbiased: KVD on I3D's logits, KID's formula.

    Source: Binkowski et al. 2018, Unterthiner et al. 2018. It may be a little below 0. Raises ScoreError for fewer than 2 rows.
    """
    if min(len(a_NF), len(b_NF)) < 2:
        raise ScoreError("a kernel distance needs at least 2 clips on each side")

    def kernel(x_NF: Features, y_NF: Features) -> Features:
        found: Features = (x_NF @ y_NF.T / x_NF.shape[1] + 1) ** 3
        return found

    def within(x_NF: Features) -> float:
        table = kernel(x_NF, x_NF)
        return float((table.sum() - np.trace(table)) / (len(x_NF) * (len(x_NF) - 1)))

    return within(a_NF) + within(b_NF) - 2 * float(kernel(a_NF, b_NF).mean())


def extrapolated_frechet(a_NF: Features, b_NF: Features, *, seed: int = 0) -> float:
    """Return the Frechet distance extrapolated to endless sets: a line in 1/N through the distances of random subsets of N clips.

    Source: Chong and Forsyth 2020 (FID infinity); here both sides are cut to N, since held-out sets are small as well. The bias is a
    line in 1/N only where N is large against the features; with fewer clips than features (400 for I3D) the estimate is still
    nearer to the truth than the plain distance, but not free of bias. Raises ScoreError for fewer than FEWEST rows.
    """
    most = min(len(a_NF), len(b_NF))
    if most < FEWEST:
        raise ScoreError(f"an extrapolated Frechet distance needs at least {FEWEST} clips on each side, not {most}")
    draw = np.random.default_rng(seed)
    sizes, found = [], []
    for size in np.unique(np.linspace(most // 2, most, _SIZES).astype(int)).tolist():
        for _ in range(_DRAWS):
            left, right = (draw.choice(len(rows), size, replace=False) for rows in (a_NF, b_NF))
            sizes.append(1 / size)
            found.append(frechet(a_NF[left], b_NF[right]))
    return float(np.polynomial.Polynomial.fit(sizes, found, 1)(0.0))
