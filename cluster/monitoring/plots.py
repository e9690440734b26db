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


def _axes(width: float = 7.2, height: float = 2.9, columns: int = 1) -> tuple[Any, Any]:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.25)
    return figure, axes[0]


def plot_loss(history: RunHistory) -> str:
    """Plot the loss over the steps: a color per shape, every second stage shaded, restarts marked."""
    if not history.steps:
        return ""
    figure, (axis,) = _axes()
    buckets = list(dict.fromkeys(step["bucket"] for step in history.steps))
    for number, bucket in enumerate(buckets):
        chosen = [step for step in history.steps if step["bucket"] == bucket]
        axis.plot(
            [s["step"] for s in chosen], [s["loss"] for s in chosen], color=COLORS[number % len(COLORS)], label=bucket, lw=1.4
        )
    for number, (title, steps) in enumerate(history.stages):
        if number % 2:
            axis.axvspan(steps[0]["step"] - 0.5, steps[-1]["step"] + 0.5, color="#94a3b8", alpha=0.13, lw=0)
        axis.text(steps[0]["step"], axis.get_ylim()[1], f" {title}", va="bottom", fontsize=8, color="#475569")
    for step in history.resumed:
        axis.axvline(step + 0.5, color="#0f172a", ls=":", lw=1.2)
        axis.text(step + 0.5, axis.get_ylim()[0], " resumed", rotation=90, va="bottom", fontsize=8)
    axis.set_xlabel("step")
    axis.set_ylabel("loss, nats per bit")
    axis.legend(frameon=False)
    return _svg(figure)


def plot_scales(steps: Sequence[Mapping[str, Any]]) -> str:
    """Plot loss and bit accuracy at each scale over the steps of one stage, for its largest shape."""
    largest = max(steps, key=lambda step: len(step["scale_loss"]) * 1000 + step["tokens"])["bucket"]
    chosen = [step for step in steps if step["bucket"] == largest]
    figure, (left, right) = _axes(width=9.6, columns=2)
    for number, scale in enumerate(chosen[-1]["scale_loss"]):
        color = plt.get_cmap("viridis")(number / max(1, len(chosen[-1]["scale_loss"]) - 1) * 0.9)
        x = [step["step"] for step in chosen]
        left.plot(x, [step["scale_loss"].get(scale) for step in chosen], color=color, label=scale, lw=1.2)
        accuracy = [step["bit_accuracy"].get(scale) for step in chosen]
        right.plot(x, [None if value is None else 100 * value for value in accuracy], color=color, label=scale, lw=1.2)
    left.set_title(f"loss at each scale, {largest}", fontsize=9)
    right.set_title("bit accuracy at each scale, %", fontsize=9)
    for axis in (left, right):
        axis.set_xlabel("step")
    right.legend(frameon=False, fontsize=8, title="scale", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


def plot_throughput(history: RunHistory) -> str:
    """Plot tokens per second, and the time of a step by phase."""
    if not history.steps:
        return ""
    figure, (left, right) = _axes(width=9.6, columns=2)
    x = [step["step"] for step in history.steps]
    left.plot(
        x, [step["tokens"] / max(step["seconds"].get("total", 0.0), 1e-9) for step in history.steps], color=COLORS[0], lw=1.2
    )
    left.set_title("tokens per second, all ranks", fontsize=9)
    left.set_ylim(bottom=0)
    phases = [name for name in history.steps[-1]["seconds"] if name != "total"]
    right.stackplot(
        x, [[step["seconds"].get(name, 0.0) for step in history.steps] for name in phases], labels=phases, alpha=0.85
    )
    right.set_title("seconds per step, by phase", fontsize=9)
    right.legend(frameon=False, fontsize=8, loc="upper left")
    for axis in (left, right):
        axis.set_xlabel("step")
    return _svg(figure)


def plot_tokenizer(lines: Sequence[Mapping[str, Any]]) -> str:
    """Plot loss, L1 and PSNR over the steps of tokenizer training."""
    steps = [line for line in lines if "step" in line]
    names = [name for name in ("loss", "l1", "psnr") if steps and name in steps[-1]]
    if not names:
        return ""
    figure, axes = _axes(width=9.6, columns=len(names))
    for axis, name in zip(axes, names):
        chosen = [step for step in steps if step.get(name) is not None]
        axis.plot([s["step"] for s in chosen], [s[name] for s in chosen], color=COLORS[2], lw=1.2)
        axis.set_title({"psnr": "PSNR, dB"}.get(name, name), fontsize=9)
        axis.set_xlabel("step")
    return _svg(figure)
