"""The scale schedule: which scales (rows x columns) code one latent frame, from 1 x 1 to the latent grid itself.

Common grids have fixed lists, square ones as in VAR and Infinity; every other grid follows the rule below. Integers only, no
torch.
"""

from __future__ import annotations

import math

Scales = tuple[tuple[int, int], ...]
"""Rows and columns of each scale, coarse to fine; the last one is the latent grid."""

_SQUARE: dict[int, tuple[int, ...]] = {
    4: (1, 2, 3, 4),
    8: (1, 2, 3, 4, 6, 8),
    16: (1, 2, 4, 6, 8, 12, 16),
    32: (1, 2, 4, 6, 8, 12, 16, 20, 24, 32),
    64: (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
}
_WIDE: dict[tuple[int, int], Scales] = {
    (12, 21): ((1, 1), (2, 2), (3, 3), (4, 7), (6, 11), (8, 14), (12, 21)),
    (24, 42): ((1, 1), (2, 2), (3, 3), (4, 7), (6, 11), (8, 14), (12, 21), (16, 28), (20, 35), (24, 42)),
}
_SIDES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
"""Side lengths that the rule uses. Like the fixed lists, it uses 3 only below 12 x 12."""
_MAX_RATIO = 8


class ScaleError(ValueError):
    """A latent grid without a scale list, or bits and features that do not fit their scales."""


def scales(rows: int, columns: int) -> Scales:
    """Return ((rows_1, columns_1), ..., (rows, columns)), strictly growing in area.

    The rule: square scales of the same area as side x side, stretched to the grid's aspect ratio. Raises ScaleError for a side
    under 1 and for an aspect ratio over 8:1, which leaves no room for scales.
    """
    if rows < 1 or columns < 1:
        raise ScaleError(f"latent grid {rows}x{columns}: both sides must be at least 1")
    if rows == columns and rows in _SQUARE:
        return tuple((side, side) for side in _SQUARE[rows])
    if (rows, columns) in _WIDE:
        return _WIDE[rows, columns]
    if (columns, rows) in _WIDE:
        return tuple((r, c) for c, r in _WIDE[columns, rows])
    if max(rows, columns) > _MAX_RATIO * min(rows, columns):
        raise ScaleError(f"latent grid {rows}x{columns}: no scale list for a ratio over 8:1; add one under tokenizer.scales")
    side = math.sqrt(rows * columns)
    ratio = math.sqrt(rows / columns)
    sides = [s for s in _SIDES if s < side and (s != 3 or side < 12)]
    while sides and 2 * sides[-1] < side - 1:
        sides.append(math.floor(1.25 * sides[-1]))
    found: list[tuple[int, int]] = []
    for s in sides:
        scale = (min(rows, max(1, round(s * ratio))), min(columns, max(1, round(s / ratio))))
        if scale[0] * scale[1] < rows * columns and (not found or scale[0] * scale[1] > found[-1][0] * found[-1][1]):
            found.append(scale)
    return (*found, (rows, columns))
