"""`videoar report RUN`: one HTML file with the curves, videos and tables of a run; opens with no network.

In:  a run folder: metrics.jsonl, tokenizer-metrics.jsonl, shards/index.parquet, *.mp4, commands.jsonl; what is missing
     leaves its part out.
Out: RUN/report.html, everything inside it (SVG plots, videos as data).
Called by: cluster/cli.py and the demo.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import pyarrow.parquet as pq

MAX_VIDEO_BYTES = 4_000_000
COLORS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#be185d", "#4d7c0f", "#475569", "#b45309")


class ReportError(ValueError):
    """A run folder with nothing to report on."""


@dataclass(frozen=True)
class Clip:
    """One video of the report."""

    title: str
    data: str
    """data: URI."""


@dataclass
class Figures:
    """Curves of a run, one list entry a step."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    """Steps after which the job was started again."""

    @property
    def stages(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Steps by stage, in order."""
        found: dict[str, list[dict[str, Any]]] = {}
        for step in self.steps:
            found.setdefault(f"{step['stage'] + 1}: {step['stage_name']}", []).append(step)
        return list(found.items())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a .jsonl file, oldest first; a half-written last line is left out."""
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number + 1 < len(lines):
                raise ReportError(f"{path}:{number + 1}: not a JSON line: {error}") from error
    return rows


def resumptions(path: Path) -> list[int]:
    """Return the steps after which the run was started again, from RUN/run.json."""
    if not path.is_file():
        return []
    return sorted({start["resumed_from"] for start in json.loads(path.read_text())["starts"] if start["resumed_from"]})


def write(run: Path) -> Path:
    """Write RUN/report.html and return its path. Raises ReportError for a folder without a run."""
    lines = read_lines(run / "metrics.jsonl")
    figures = Figures(
        steps=[line for line in lines if "loss" in line and "step" in line],
        resumed=resumptions(run / "run.json"),
    )
    tokenizer = read_lines(run / "tokenizer-metrics.jsonl")
    if not figures.steps and not tokenizer:
        raise ReportError(f"{run}: no metrics.jsonl with a step in it; name the folder of a run")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        name=run.name,
        summary=summary(figures),
        tokenizer_plot=plot_tokenizer(tokenizer),
        loss_plot=plot_loss(figures),
        scale_plots=[(title, plot_scales(steps)) for title, steps in figures.stages],
        throughput_plot=plot_throughput(figures),
        stages=[stage_row(title, steps) for title, steps in figures.stages],
        resumed=figures.resumed,
        shards=shard_rows(run / "shards"),
        reject_rows=reject_rows(run / "shards"),
        reconstructions=videos(run / "reconstruction"),
        samples=videos(run / "samples" / "text"),
        continuations=videos(run / "samples" / "continuation"),
        in_loop=[clip for folder in sorted((run / "samples").glob("step-*")) for clip in videos(folder)],
        commands=read_lines(run / "commands.jsonl"),
        scrape=scrape_rows(run / "metrics-scrape.txt"),
    )
    target = run / "report.html"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(page)
    temporary.replace(target)
    return target


def summary(figures: Figures) -> list[tuple[str, str]]:
    """Return the headline figures as (label, value)."""
    if not figures.steps:
        return []
    first, last = figures.steps[0], figures.steps[-1]
    seconds = sum(step["seconds"].get("total", 0.0) for step in figures.steps)
    tokens = sum(step["tokens"] for step in figures.steps)
    return [
        ("steps", f"{last['step']}"),
        ("loss, first → last step", f"{first['loss']:.3f} → {last['loss']:.3f} nats a bit"),
        ("bit accuracy, last step", f"{100 * _mean(last['bit_accuracy'].values()):.1f} % (mean over scales)"),
        ("tokens", f"{tokens:,}"),
        ("throughput", f"{tokens / seconds:,.0f} tokens a second" if seconds else "not measured"),
    ]


def stage_row(title: str, steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the table row of one stage; both ends are means over a tenth of the stage, since shapes alternate."""
    tenth = max(1, len(steps) // 10)
    ends = []
    for part in (steps[:tenth], steps[-tenth:]):
        ends.append((_mean(s["loss"] for s in part), _mean(_mean(s["bit_accuracy"].values()) for s in part)))
    return {
        "title": title,
        "steps": f"{steps[0]['step']}-{steps[-1]['step']}",
        "buckets": ", ".join(dict.fromkeys(str(s["bucket"]) for s in steps)),
        "loss": f"{ends[0][0]:.3f} → {ends[1][0]:.3f}",
        "accuracy": f"{100 * ends[0][1]:.1f} → {100 * ends[1][1]:.1f} %",
        "speed": f"{_mean(s['tokens'] / max(s['seconds'].get('total', 0.0), 1e-9) for s in steps):,.0f}",
    }


def _mean(values: Iterable[float]) -> float:
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else float("nan")


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


def plot_loss(figures: Figures) -> str:
    """Loss over the steps, a colour a shape, stages shaded, resumptions marked."""
    if not figures.steps:
        return ""
    figure, (axis,) = _axes()
    buckets = list(dict.fromkeys(step["bucket"] for step in figures.steps))
    for number, bucket in enumerate(buckets):
        chosen = [step for step in figures.steps if step["bucket"] == bucket]
        axis.plot(
            [s["step"] for s in chosen], [s["loss"] for s in chosen], color=COLORS[number % len(COLORS)], label=bucket, lw=1.4
        )
    for number, (title, steps) in enumerate(figures.stages):
        if number % 2:
            axis.axvspan(steps[0]["step"] - 0.5, steps[-1]["step"] + 0.5, color="#94a3b8", alpha=0.13, lw=0)
        axis.text(steps[0]["step"], axis.get_ylim()[1], f" {title}", va="bottom", fontsize=8, color="#475569")
    for step in figures.resumed:
        axis.axvline(step + 0.5, color="#0f172a", ls=":", lw=1.2)
        axis.text(step + 0.5, axis.get_ylim()[0], " resumed", rotation=90, va="bottom", fontsize=8)
    axis.set_xlabel("step")
    axis.set_ylabel("loss, nats a bit")
    axis.legend(frameon=False)
    return _svg(figure)


def plot_scales(steps: Sequence[Mapping[str, Any]]) -> str:
    """Loss and bit accuracy of each scale over the steps of one stage (its largest shape)."""
    widest = max(steps, key=lambda step: len(step["scale_loss"]) * 1000 + step["tokens"])["bucket"]
    chosen = [step for step in steps if step["bucket"] == widest]
    figure, (left, right) = _axes(width=9.6, columns=2)
    for number, scale in enumerate(chosen[-1]["scale_loss"]):
        color = plt.get_cmap("viridis")(number / max(1, len(chosen[-1]["scale_loss"]) - 1) * 0.9)
        x = [step["step"] for step in chosen]
        left.plot(x, [step["scale_loss"].get(scale) for step in chosen], color=color, label=scale, lw=1.2)
        accuracy = [step["bit_accuracy"].get(scale) for step in chosen]
        right.plot(x, [None if value is None else 100 * value for value in accuracy], color=color, label=scale, lw=1.2)
    left.set_title(f"loss at each scale, {widest}", fontsize=9)
    right.set_title("bit accuracy at each scale, %", fontsize=9)
    for axis in (left, right):
        axis.set_xlabel("step")
    right.legend(frameon=False, fontsize=8, title="scale", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


def plot_throughput(figures: Figures) -> str:
    """Tokens a second, and where a step's time goes."""
    if not figures.steps:
        return ""
    figure, (left, right) = _axes(width=9.6, columns=2)
    x = [step["step"] for step in figures.steps]
    left.plot(
        x, [step["tokens"] / max(step["seconds"].get("total", 0.0), 1e-9) for step in figures.steps], color=COLORS[0], lw=1.2
    )
    left.set_title("tokens a second, all ranks", fontsize=9)
    left.set_ylim(bottom=0)
    phases = [name for name in figures.steps[-1]["seconds"] if name != "total"]
    right.stackplot(
        x, [[step["seconds"].get(name, 0.0) for step in figures.steps] for name in phases], labels=phases, alpha=0.85
    )
    right.set_title("seconds of a step by phase", fontsize=9)
    right.legend(frameon=False, fontsize=8, loc="upper left")
    for axis in (left, right):
        axis.set_xlabel("step")
    return _svg(figure)


def plot_tokenizer(lines: Sequence[Mapping[str, Any]]) -> str:
    """Curves of the tokenizer's training: every plain figure that falls or rises over its steps."""
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


def videos(folder: Path) -> list[Clip]:
    """Return the mp4 files of `folder` as data, with the text of NAME.txt (or the file name) as title."""
    found = []
    for path in sorted(folder.glob("*.mp4")) if folder.is_dir() else []:
        if path.stat().st_size > MAX_VIDEO_BYTES:
            continue
        note = path.with_suffix(".txt")
        title = note.read_text().strip() if note.is_file() else path.stem
        found.append(Clip(title, "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()))
    return found


def shard_rows(folder: Path) -> list[dict[str, str]]:
    """Return one row a shard: name, samples, packed bytes, sources."""
    index = folder / "index.parquet"
    if not index.is_file():
        return []
    table = pq.read_table(index, columns=["shard", "source", "bits_size"]).to_pylist()
    shards: dict[str, list[dict[str, Any]]] = {}
    for row in table:
        shards.setdefault(row["shard"], []).append(row)
    return [
        {
            "name": name,
            "samples": str(len(rows)),
            "bytes": f"{sum(row['bits_size'] for row in rows):,}",
            "sources": ", ".join(sorted({Path(row["source"]).name for row in rows})),
        }
        for name, rows in sorted(shards.items())
    ]


def reject_rows(folder: Path) -> list[dict[str, str]]:
    """Return one row a refused video or clip: source, stage, reason, how often."""
    path = folder / "rejects.parquet"
    if not path.is_file():
        return []
    counts: dict[tuple[str, str, str], int] = {}
    for row in pq.read_table(path, columns=["source", "stage", "reason"]).to_pylist():
        key = (Path(row["source"]).name, row["stage"], row["reason"])
        counts[key] = counts.get(key, 0) + 1
    return [{"source": s, "stage": t, "reason": r, "count": str(n)} for (s, t, r), n in sorted(counts.items())]


def scrape_rows(path: Path) -> list[str]:
    """Return the plain sample lines of the last scrape of the job's Prometheus endpoint."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines() if line.startswith("videoar_") and "_created" not in line][:60]
