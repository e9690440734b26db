"""What is drawn of a run: its charts, from the columns of its history.

In:  a `History`, a range of steps, and how many points fit.
Out: `Chart`: a title, a unit, and curves over common x; thinned so that no spike is lost.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cluster.monitor.decimate import Bins, Column, plain
from cluster.monitor.history import BLOCK, History

MOST_CURVES = 16
"""Curves of one chart; more are not told apart."""


@dataclass(frozen=True)
class Chart:
    """Curves over common x."""

    name: str
    title: str
    unit: str
    x: list[float | None]
    curves: list[tuple[str, list[float | None]]]
    """Label and values, one per x; None where there is no value."""
    time: bool = False
    """Whether x is Unix time; else it is the step."""

    def json(self) -> dict[str, Any]:
        """Return the chart for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Group:
    """One chart of a family: the columns that start with `prefix`."""

    name: str
    title: str
    unit: str
    prefix: str
    scale: float = 1.0


TRAINING = (
    Group("loss", "Loss, by stage and shape", "nats per bit", "loss_by/"),
    Group("throughput", "Throughput, all ranks", "tokens/s", "tokens_per_second"),
    Group("scale_loss", "Loss at each scale", "nats per bit", "scale_loss/"),
    Group("bit_accuracy", "Bit accuracy at each scale", "%", "bit_accuracy/", 100.0),
    Group("seconds", "Seconds of a step, by phase", "s", "seconds/"),
    Group("grad_norm", "Gradient norm before clipping", "", "grad_norm"),
    Group("learning_rate", "Learning rate", "", "learning_rate"),
    Group("mfu", "Model FLOPs utilization", "%", "mfu", 100.0),
    Group("memory", "Memory of rank 0", "GiB", "memory/", 2.0**-30),
    Group("padding", "Padding, share of computed positions", "%", "padding", 100.0),
)
VALIDATION = (Group("validation", "Validation loss, by stream", "nats per bit", "loss_by/"),)
TOKENIZER = (
    Group("tokenizer_loss", "Tokenizer: loss", "", "loss"),
    Group("tokenizer_psnr", "Tokenizer: PSNR", "dB", "psnr"),
    Group("tokenizer_entropy", "Tokenizer: entropy of the mean bit, by scale", "bits", "bit_entropy/"),
)


@dataclass(frozen=True)
class View:
    """The part of a history that is asked for."""

    width: int = 300
    """Bins."""
    begin: float = -math.inf
    end: float = math.inf

    def bins(self, history: History) -> Bins | None:
        """Return the bins over the rows of the steps asked for, one row more on each side; None without rows."""
        steps = history.column("step")
        first = max(0, int(np.searchsorted(steps, self.begin)) - 1)
        last = min(len(steps), int(np.searchsorted(steps, self.end, side="right")) + 1)
        if last <= first:
            return None
        wide = Bins.over(first, last, 2 * self.width)
        return wide if wide.whole else Bins.over(first, last, self.width)


def training(history: History, view: View) -> list[Chart]:
    """Return the charts of metrics.jsonl."""
    return _charts(history, view, TRAINING)


def tokenizer(history: History, view: View) -> list[Chart]:
    """Return the charts of tokenizer-metrics.jsonl."""
    return _charts(history, view, TOKENIZER)


def validation(history: History, view: View) -> list[Chart]:
    """Return the chart of validation.jsonl."""
    return _charts(history, view, VALIDATION)


def one(history: History, view: View, name: str) -> Chart | None:
    """Return a single column as a chart, for comparing runs; None without such values."""
    bins = view.bins(history)
    if bins is None or name not in history.names():
        return None
    return Chart(name, name, "", _x(history, bins), [(name, plain(_points(history, bins, name)))])


def _x(history: History, bins: Bins) -> list[float | None]:
    return [float(step) for step in history.column("step")[bins.rows()].tolist()]


def _charts(history: History, view: View, groups: tuple[Group, ...]) -> list[Chart]:
    bins = view.bins(history)
    if bins is None:
        return []
    found, x = [], _x(history, bins)
    for group in groups:
        folder = group.prefix.endswith("/")
        names = [name for name in history.names() if (name.startswith(group.prefix) if folder else name == group.prefix)]
        curves = []
        for name in names[:MOST_CURVES]:
            values = _points(history, bins, name) * group.scale
            if np.isfinite(values).any():
                curves.append((name.removeprefix(group.prefix) or name, plain(values)))
        if curves:
            found.append(Chart(group.name, group.title, group.unit, x, curves))
    return found


def _points(history: History, bins: Bins, name: str) -> Column:
    column = history.column(name)[: bins.end]
    if len(column) < bins.end:  # cut back by a resume since the bins were made
        column = np.append(column, np.full(bins.end - len(column), math.nan))
    if bins.rows_each < 4 * BLOCK:
        return bins.values(column)
    return bins.values_of_blocks(column, history.blocks(name), BLOCK)
