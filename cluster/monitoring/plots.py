"""The plots of a report.

In:  the records of a run's steps, as metrics.jsonl has them.
Out: SVG text to embed in the page; empty when there is nothing to plot.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLORS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#be185d", "#4d7c0f", "#475569", "#b45309")
"""Colors of curves, in order."""
FEW = 40
"""Points; with fewer than this, each has a dot."""


@dataclass
class RunHistory:
    """The steps of a run, and where it was restarted."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    """Records of metrics.jsonl, one per step."""
    resumed: list[int] = field(default_factory=list)
    """Steps after which the job was restarted."""

    @property
    def stages(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The steps of each stage, by its title, in order."""
        found: dict[str, list[dict[str, Any]]] = {}
        for step in self.steps:
            found.setdefault(f"{step['stage'] + 1}: {step['stage_name']}", []).append(step)
        return list(found.items())


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _axis(title: str, x: str = "step") -> tuple[Any, Any]:
    """Return a figure with one axis, of a size whose texts are legible at a phone's width."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"})
    figure, axis = plt.subplots(figsize=(4.4, 2.9))
    axis.grid(alpha=0.25)
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x)
    return figure, axis


def _dots(points: int) -> dict[str, Any]:
    """Return how few points are marked, so that a curve of one is seen."""
    return {"marker": "o", "markersize": 3.5} if points < FEW else {}


def _legend(axis: Any, columns: int = 3, title: str = "") -> None:
    axis.legend(frameon=False, fontsize=9, title=title, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=columns)


def plot_loss(history: RunHistory) -> str:
    """Plot the loss over the steps: a color per shape, every second stage shaded, restarts marked."""
    if not history.steps:
        return ""
    figure, axis = _axis("loss, nats per bit")
    buckets = list(dict.fromkeys(step["bucket"] for step in history.steps))
    for number, bucket in enumerate(buckets):
        chosen = [step for step in history.steps if step["bucket"] == bucket]
        axis.plot(
            [s["step"] for s in chosen],
            [s["loss"] for s in chosen],
            color=COLORS[number % len(COLORS)],
            label=bucket,
            lw=1.4,
            **_dots(len(chosen)),
        )
    for number, (_, steps) in enumerate(history.stages):
        if number % 2:
            axis.axvspan(steps[0]["step"] - 0.5, steps[-1]["step"] + 0.5, color="#94a3b8", alpha=0.13, lw=0)
        axis.text(steps[0]["step"], axis.get_ylim()[1], f" stage {number + 1}", va="top", fontsize=9, color="#475569")
    for step in history.resumed:
        axis.axvline(step + 0.5, color="#0f172a", ls=":", lw=1.2)
        axis.text(step + 0.5, axis.get_ylim()[0], " resumed", rotation=90, va="bottom", fontsize=9)
    _legend(axis)
    return _svg(figure)


def plot_scales(steps: Sequence[Mapping[str, Any]]) -> str:
    """Plot loss and bit accuracy at each scale over the steps of one stage, for its largest shape."""
    largest = max(steps, key=lambda step: len(step["scale_loss"]) * 1000 + step["tokens"])["bucket"]
    chosen = [step for step in steps if step["bucket"] == largest]
    (first, left), (second, right) = _axis(f"loss at each scale, {largest}"), _axis("bit accuracy at each scale, %")
    for number, scale in enumerate(chosen[-1]["scale_loss"]):
        color = plt.get_cmap("viridis")(number / max(1, len(chosen[-1]["scale_loss"]) - 1) * 0.9)
        x = [step["step"] for step in chosen]
        style = {"color": color, "label": scale, "lw": 1.2, **_dots(len(chosen))}
        left.plot(x, [step["scale_loss"].get(scale) for step in chosen], **style)
        accuracy = [step["bit_accuracy"].get(scale) for step in chosen]
        right.plot(x, [None if value is None else 100 * value for value in accuracy], **style)
    for axis in (left, right):
        _legend(axis, columns=4)
    return _svg(first) + _svg(second)


def plot_throughput(history: RunHistory) -> str:
    """Plot tokens per second, and the time of a step by phase."""
    if not history.steps:
        return ""
    (first, left), (second, right) = _axis("tokens per second, all ranks"), _axis("seconds per step, by phase")
    x = [step["step"] for step in history.steps]
    speed = [step["tokens"] / max(step["seconds"].get("total", 0.0), 1e-9) for step in history.steps]
    left.plot(x, speed, color=COLORS[0], lw=1.2, **_dots(len(x)))
    left.set_ylim(bottom=0)
    phases = [name for name in history.steps[-1]["seconds"] if name != "total"]
    heights = [[step["seconds"].get(name, 0.0) for step in history.steps] for name in phases]
    if len(x) == 1:  # an area of one step has no width
        for at, name in enumerate(phases):
            right.bar(x, heights[at], bottom=sum(height[0] for height in heights[:at]), label=name, alpha=0.85)
    else:
        right.stackplot(x, heights, labels=phases, alpha=0.85)
    _legend(right)
    return _svg(first) + _svg(second)


def plot_tokenizer(lines: Sequence[Mapping[str, Any]]) -> str:
    """Plot loss, L1 and PSNR over the steps of tokenizer training."""
    steps = [line for line in lines if "step" in line]
    names = [name for name in ("loss", "l1", "psnr") if steps and name in steps[-1]]
    if not names:
        return ""
    found = ""
    for name in names:
        figure, axis = _axis({"psnr": "PSNR, dB", "l1": "L1"}.get(name, name))
        chosen = [step for step in steps if step.get(name) is not None]
        axis.plot([s["step"] for s in chosen], [s[name] for s in chosen], color=COLORS[2], lw=1.2, **_dots(len(chosen)))
        found += _svg(figure)
    return found
