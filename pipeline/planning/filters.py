"""Scores of a span of video, and whether they refuse it. A new filter is a score in `scores` and a threshold in `refusal`.

In:  a `Scan` and a span in seconds.
Out: scores (kept in the tables of clips or rejects), and the reason of a refusal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.scan import Scan
from pipeline.config import FilterConfig


def scores(found: Scan, begin: float, end: float) -> dict[str, float]:
    """Return luma, motion and sharpness, and text where it was looked for: means over the frames shown in [begin, end).

    Luma and motion are 0 to 255, sharpness is a variance, text a share of the picture. Motion leaves the first frame out, whose
    difference is to a frame outside of the span. `corrupt` is the share of frames decoded with errors, `dropped` that of the file's
    frames that had no place in its clock; both are there where they are not 0.
    """
    first = max(0, int(np.searchsorted(found.times, begin + 1e-6, side="right")) - 1)
    last = max(first + 1, int(np.searchsorted(found.times, end - 1e-6, side="left")))
    motion = found.motion[first + 1 : last]
    text = {"text": round(_mean_where_measured(found.text, first, last), 4)} if np.isfinite(found.text).any() else {}
    dropped = int(found.details.get("dropped", 0))
    shares = {
        "corrupt": float(found.corrupt[first:last].mean()) if len(found.corrupt) else 0.0,
        "dropped": dropped / (len(found.times) + dropped),
    }
    return {
        **text,
        **{name: round(share, 4) for name, share in shares.items() if share > 0},
        "luma": round(float(found.luma[first:last].mean()), 4),
        "motion": round(float(motion.mean()), 4) if len(motion) else 0.0,
        "sharpness": round(float(found.sharpness[first:last].mean()), 4),
    }


def _mean_where_measured(values: NDArray[np.float64], first: int, last: int) -> float:
    """Return the mean over the measured frames of a span; where none was measured, the value of the nearest one that was."""
    measured = np.flatnonzero(np.isfinite(values))
    inside = measured[(measured >= first) & (measured < last)]
    return float(values[inside if len(inside) else measured[np.abs(measured - first).argmin()]].mean())


def refusal(found: dict[str, float], config: FilterConfig, frames: int) -> tuple[str, str]:
    """Return (reason, detail) where a score is outside of its threshold, else two empty strings.

    frames: number of frames of the longest clip; a single picture is never static.
    """
    if found.get("corrupt", 0.0) > config.max_corrupt:
        share = f"{found['corrupt']:.2f} of the frames are decoded with errors"
        return "damaged", f"{share}; pipeline.filters.max_corrupt is {config.max_corrupt:g}"
    if found.get("dropped", 0.0) > config.max_dropped:
        share = f"{found['dropped']:.2f} of the file's frames have no place in its clock"
        return "damaged", f"{share}; pipeline.filters.max_dropped is {config.max_dropped:g}"
    if found["luma"] < config.min_luma:
        return "black", f"mean luma {found['luma']:.1f} is under pipeline.filters.min_luma = {config.min_luma:g}"
    if frames > 1 and found["motion"] < config.min_motion:
        return "static", f"motion {found['motion']:.2f} is under pipeline.filters.min_motion = {config.min_motion:g}"
    if found["sharpness"] < config.min_sharpness:
        return (
            "blurred",
            f"sharpness {found['sharpness']:.1f} is under pipeline.filters.min_sharpness = {config.min_sharpness:g}",
        )
    if found.get("text", 0.0) > config.max_text:
        return "text", f"text covers {found['text']:.3f} of the picture; pipeline.filters.max_text is {config.max_text:g}"
    return "", ""
