"""`videoar report RUN`: one HTML file with the curves, videos and tables of a run, which needs no network.

In:  a run folder: metrics.jsonl, tokenizer-metrics.jsonl, shards/index, *.mp4, commands.jsonl; a part whose file is
     missing is omitted.
Out: RUN/report.html with everything embedded (plots as SVG, videos as data URIs).
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from cluster.monitoring.plots import RunHistory, plot_loss, plot_scales, plot_throughput, plot_tokenizer
from cluster.runtime.atomic_files import read_json, write_text
from cluster.tables import table_list
from cluster.tables.table_folder import TableFolder

MAX_VIDEO_BYTES = 4_000_000
"""Larger videos are not embedded."""
MOST_REJECTS = 200
"""Rows of the table of rejects."""


class ReportError(ValueError):
    """A run folder that cannot be reported on; the message names the file and the problem."""


@dataclass(frozen=True)
class EmbeddedVideo:
    """One video of the report."""

    title: str
    data: str
    """The file as a data URI."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a .jsonl file, oldest first; an incomplete last line is ignored."""
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


def restarts(path: Path) -> list[int]:
    """Return the steps after which the run was restarted, from RUN/run.json."""
    if not path.is_file():
        return []
    return sorted({start["resumed_from"] for start in read_json(path)["starts"] if start["resumed_from"]})


def write(run: Path) -> Path:
    """Write RUN/report.html and return its path. Raises ReportError for a folder that is not a run."""
    lines = read_lines(run / "metrics.jsonl")
    history = RunHistory(
        steps=[line for line in lines if "loss" in line and "step" in line],
        resumed=restarts(run / "run.json"),
    )
    tokenizer = read_lines(run / "tokenizer-metrics.jsonl")
    if not history.steps and not tokenizer:
        raise ReportError(f"{run}: no metrics.jsonl with a step in it; pass the folder of a run")
    rejected = reject_rows(run / "shards")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        name=run.name,
        summary=summary(history),
        budget=budget_lines(run / "budget.json", tokenizer),
        tokenizer_plot=plot_tokenizer(tokenizer),
        loss_plot=plot_loss(history),
        scale_plots=[(title, plot_scales(steps)) for title, steps in history.stages],
        throughput_plot=plot_throughput(history),
        stages=[stage_row(title, steps) for title, steps in history.stages],
        resumed=history.resumed,
        shards=shard_rows(run / "shards"),
        reject_rows=rejected[:MOST_REJECTS],
        more_rejects=len(rejected) - MOST_REJECTS,
        origin=origin_rows(run),
        config=(run / "config.yaml").read_text() if (run / "config.yaml").is_file() else "",
        reconstructions=videos(run / "reconstruction"),
        samples=videos(run / "samples" / "text"),
        continuations=videos(run / "samples" / "continuation"),
        in_loop=[(folder.name, videos(folder)) for folder in sorted((run / "samples").glob("step-????????"))],
        commands=read_lines(run / "commands.jsonl"),
        scrape=scrape_rows(run / "metrics-scrape.txt"),
    )
    target = run / "report.html"
    write_text(target, page)
    return target


def summary(history: RunHistory) -> list[tuple[str, str]]:
    """Return the headline numbers as (label, value)."""
    if not history.steps:
        return []
    first, last = history.steps[0], history.steps[-1]
    seconds = sum(step["seconds"].get("total", 0.0) for step in history.steps)
    tokens = sum(step["tokens"] for step in history.steps)
    return [
        ("steps", f"{last['step']}"),
        ("loss, first → last step", f"{first['loss']:.3f} → {last['loss']:.3f} nats per bit"),
        ("bit accuracy, last step", f"{100 * _mean(last['bit_accuracy'].values()):.1f} % (mean over scales)"),
        ("tokens", f"{tokens:,}"),
        ("throughput", f"{tokens / seconds:,.0f} tokens per second" if seconds else "not measured"),
        ("padding", f"{100 * _mean(step.get('padding', 0.0) for step in history.steps):.1f} % of positions"),
        ("compilations during steps", f"{sum(step.get('compilations', 0) for step in history.steps)}"),
    ]


def budget_lines(path: Path, tokenizer: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a demo chose for its minutes and what more of them would give; nothing where nothing was cut to fit."""
    if not path.is_file():
        return []
    plain = read_json(path)
    known, stages = plain["recipe"], plain["stage_seconds"]
    if not plain["tokenizer_seconds"] or not stages:
        return []
    lines = [
        f"Within {plain['minutes']:g} minutes: {plain['tokenizer_steps']} of the recipe's {known['tokenizer_steps']} steps for the tokenizer "
        f"({plain['tokenizer_seconds']:.2f} s each), {' + '.join(map(str, plain['stage_steps']))} of "
        f"{' + '.join(map(str, known['stage_steps']))} for the transformer ({' and '.join(f'{each:.2f}' for each in stages)} s each)."
    ]
    cut = plain["tokenizer_seconds"] * (known["tokenizer_steps"] - plain["tokenizer_steps"])
    cut += sum(s * (most - n) for s, most, n in zip(stages, known["stage_steps"], plain["stage_steps"], strict=True))
    if cut > 0:
        lines.append(
            f"All steps of the recipe would take {cut / 60:.0f} more minutes on this machine: "
            f"videoar demo --minutes {plain['minutes'] + cut / 60 + 1:.0f} --out another-folder"
        )
    psnr = [line["psnr"] for line in tokenizer if line.get("psnr") is not None]
    if len(psnr) >= 20:
        tenth = len(psnr) // 10
        half, end = _mean(psnr[4 * tenth : 6 * tenth]), _mean(psnr[-2 * tenth :])
        lines.append(
            f"The tokenizer's PSNR was {half:.1f} dB at half of its steps and {end:.1f} dB at the end. As a rule, twice the steps gain "
            f"less than the second half did ({max(0.0, end - half):.1f} dB); samples cannot be sharper than the reconstructions."
        )
    return lines


def stage_row(title: str, steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the table row of one stage; first and last values are means over a tenth of the stage, because shapes alternate."""
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


def videos(folder: Path) -> list[EmbeddedVideo]:
    """Return the mp4 files of `folder`, titled by the prompts of samples.json or captions.json, or by file name."""
    found = []
    note = next((folder / name for name in ("samples.json", "captions.json") if (folder / name).is_file()), None)
    notes = read_json(note) if note else {}
    titles = dict(enumerate(notes.get("prompts") or notes.get("captions") or []))
    given = f" (given: the first {notes['prefix_frames']} frames of {notes['prefix']})" if notes.get("prefix") else ""
    for number, path in enumerate(sorted(folder.glob("*.mp4")) if folder.is_dir() else []):
        if path.stat().st_size > MAX_VIDEO_BYTES:
            continue
        title = (titles.get(number) or path.stem) + given
        found.append(EmbeddedVideo(title, "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()))
    return found


def shard_rows(folder: Path) -> list[dict[str, Any]]:
    """Return one row per shape: its shards, samples, packed bytes and sources; with several, a last row with the sums."""
    if not table_list.exists(folder / "index"):
        return []
    shapes: dict[str, dict[str, Any]] = {}
    for table in TableFolder.open(folder / "index").tables(["shard", "source", "bits_size"]):
        for row in table.to_pylist():
            shape = shapes.setdefault(row["shard"].split("/")[0], {"shards": set(), "samples": 0, "bytes": 0, "sources": set()})
            shape["shards"].add(row["shard"])
            shape["samples"] += 1
            shape["bytes"] += row["bits_size"]
            shape["sources"].add(row["source"])
    total = {
        "shards": set().union(*(shape["shards"] for shape in shapes.values())),
        "samples": sum(shape["samples"] for shape in shapes.values()),
        "bytes": sum(shape["bytes"] for shape in shapes.values()),
        "sources": set().union(*(shape["sources"] for shape in shapes.values())),
    }
    named = [*sorted(shapes.items()), *([("all", total)] if len(shapes) > 1 else [])]
    return [
        {
            "name": name,
            "shards": f"{len(shape['shards']):,}",
            "samples": f"{shape['samples']:,}",
            "bytes": f"{shape['bytes']:,}",
            "sources": f"{len(shape['sources']):,}",
        }
        for name, shape in named
    ]


def origin_rows(run: Path) -> list[tuple[str, str]]:
    """Return what the last start ran with: code, packages, hosts, data type, digests."""
    path = run / "run.json"
    starts = read_json(path)["starts"] if path.is_file() else []
    if not starts:
        return []
    last = starts[-1]
    hosts = Counter(last.get("hosts", []))
    rows = [
        ("starts", str(len(starts))),
        ("ranks by host", ", ".join(f"{host} × {count}" for host, count in hosts.items())),
        ("number type", last.get("dtype", "")),
        ("python", last.get("python", "")),
        *sorted(last.get("packages", {}).items()),
        ("commit", last.get("commit", "")),
        ("digest of the code", last.get("code_digest", "")),
        ("digest of the configuration", last.get("config_digest", "")),
        ("digest of the data", last.get("data_digest", "")),
    ]
    return [(name, value) for name, value in rows if value]


def reject_rows(folder: Path) -> list[dict[str, str]]:
    """Return one row per source, stage and reason of rejection, with the count."""
    if not table_list.exists(folder / "rejects"):
        return []
    tables = TableFolder.open(folder / "rejects").tables(["source", "stage", "reason"])
    counts: dict[tuple[str, str, str], int] = {}
    for row in (row for table in tables for row in table.to_pylist()):
        key = (Path(row["source"]).name, row["stage"], row["reason"])
        counts[key] = counts.get(key, 0) + 1
    return [{"source": s, "stage": t, "reason": r, "count": str(n)} for (s, t, r), n in sorted(counts.items())]


def scrape_rows(path: Path) -> list[str]:
    """Return the metrics of the last scrape of the job's Prometheus endpoint, as text lines."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines() if line.startswith("videoar_") and "_created" not in line][:60]
