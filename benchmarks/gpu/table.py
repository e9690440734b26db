"""The bars of the benchmark, and which of them are met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu import results

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Bar:
    """One figure against what is wanted."""

    text: str
    value: float | None
    wanted: float
    at_most: bool
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "unmeasured"
        met = self.value <= self.wanted if self.at_most else self.value >= self.wanted
        return "met" if met else "NOT MET"


def bars(lines: Mapping[str, results.Line]) -> list[Bar]:
    """All bars that the lines say something of, and the others as unmeasured."""
    of: Callable[[str], Rows] = lambda section: results.figures(lines, section)  # noqa: E731
    return [*_steps(of("step")), *_job(of("job")), *_attention(of("attention")), *_mask(of("mask")), *_others(lines)]


def _steps(rows: Rows) -> Iterator[Bar]:
    shapes = list(dict.fromkeys(row["shape"] for row in rows)) or ["16 x 682", "1 x 24,164"]
    for shape in shapes:
        plain = next((row for row in rows if row["shape"] == shape and row["way"] == "plain"), None)
        mine = [row for row in rows if row["shape"] == shape and row["way"] != "plain"]
        wanted = 1.15 if shape == shapes[0] else 1.1
        for row in mine:
            note = f"{row['step_s'] * 1e3:.0f} ms, MFU {row['mfu']:.3f} (in a row {row['mfu_pipelined']:.3f})"
            ratio = row["step_s"] / plain["step_s"] if plain else None
            yield Bar(f"step L, {shape}, {row['way']}, {row['policy']}, to plain's time", ratio, wanted, True, "x", note)
            together = row["pipelined_s"] / plain["pipelined_s"] if plain else None
            yield Bar("the same, ten steps in a row, to plain's ten", together, wanted, True, "x")
            if row.get("peak_to_plan"):
                off = abs(row["peak_to_plan"] - 1)
                yield Bar(
                    f"memory of it against plan {row['plan_gb']:.1f} GB",
                    off,
                    0.10,
                    True,
                    "off",
                    f"peak {row['peak_gb']:.1f} GB",
                )
        if plain:
            yield Bar(
                f"plain, {shape}, {plain['policy']} (for comparison: MFU)",
                plain["mfu"],
                0.0,
                False,
                "",
                f"{plain['step_s'] * 1e3:.0f} ms",
            )
        elif not mine:
            yield Bar(f"step L, {shape}, to plain's time", None, wanted, True, "x")


def _job(rows: Rows) -> Iterator[Bar]:
    stages = [row for row in rows if "stage" in row]
    long = next((row for row in stages if row["stage"] == "long"), None)
    yield Bar("MFU of the real job, long stage, median", long and long["mfu"], 0.42, False, "", _of(long, "policy"))
    short = next((row for row in stages if row["stage"] == "short"), None)
    yield Bar("MFU of the real job, short stage (no bar), median", short and short["mfu"], 0.0, False, "", _of(short, "policy"))
    later = sum(row["compilations_later"] for row in stages) if stages else None
    yield Bar(f"compilations after a stage's first step, {len(stages)} stages", later, 0, True)
    saved = next((row for row in rows if "stall_s" in row), None)
    yield Bar(
        "checkpoint of 14 GB in the job: longest stall", saved and saved["stall_s"], 0.5, True, "s", _of(saved, "stall_by_step")
    )
    yield Bar("step after a checkpoint, beyond the usual (no bar)", saved and saved["next_step_excess_s"], 0.5, True, "s")


def _attention(rows: Rows) -> Iterator[Bar]:
    mine = [row for row in rows if row["way"] == "ours"]
    for row in mine:
        bar = 0.5 if row["shape"] != mine[-2]["shape"] else 0.0
        note = f"{row['ms']:.2f} ms, {row['time_to_sdpa']:.2f} x causal SDPA"
        yield Bar(row["name"].replace("ours, ", "") + ": share of the product", row["share_of_product"], bar, False, "", note)
    if not mine:
        yield Bar("attention, 24,164 tokens: share of the product", None, 0.5, False)


def _mask(rows: Rows) -> Iterator[Bar]:
    for row in rows:
        yield Bar(f"{row['name']}: ms when it changes", row["ms"], 1.0, True, "ms", f"when it does not {row['kept_ms']:.3f}")
    largest = max((max(row["largest_tensor_mb"], row["host_peak_mb"], row["device_peak_mb"]) for row in rows), default=None)
    yield Bar("mask: largest tensor", largest, 64.0, True, "MB")


def _others(lines: Mapping[str, results.Line]) -> Iterator[Bar]:
    samples = {row["name"]: row["seconds"] for row in results.figures(lines, "sample")}
    for name, wanted in (
        ("sample L, 1 clip, graphs", 0.08),
        ("sample XL, 1 clip, graphs", 0.12),
        ("sample L, 16 clips, graphs", 0.35),
    ):
        yield Bar(f"{name}, 17 x 128 x 128", samples.get(name), wanted, True, "s")
    for section in ("codec", "checkpoint"):
        rows = results.figures(lines, section)
        for row in rows:  # these carry their own bars
            if "wanted" in row:
                yield Bar(row["name"], row["value"], row["wanted"], row.get("at_most", True), row.get("unit", ""))
        if not rows:
            yield Bar(section, None, 0.0, True)


def _of(row: dict[str, Any] | None, key: str) -> str:
    return "" if row is None else str(row[key])


def render(lines: Mapping[str, results.Line]) -> str:
    """The table, and one line for each case that could not be measured."""
    peak = {row["name"]: row for row in results.figures(lines, "peak")}
    card = sorted({line["card"] for line in lines.values()})
    out = [f"card: {', '.join(card)}"]
    if any(line["dry_run"] for line in lines.values()):
        out.append("dry run at tiny shapes: what follows says nothing about speed")
    if peak:
        out.append(f"limits: product {peak['product']['tflops']:.0f} TFLOP/s, copy {peak['copy']['tbytes_per_s']:.2f} TB/s")
    found = bars(lines)
    width = max(len(bar.text) for bar in found)
    for bar in found:
        value = "-" if bar.value is None else f"{bar.value:.3g}"
        sign = "<=" if bar.at_most else ">="
        wanted = f"{sign} {bar.wanted:g} {bar.unit}" if bar.wanted or bar.at_most else ""
        verdict = bar.verdict if bar.wanted or bar.at_most else ""
        out.append(f"{bar.text:<{width}}  {value:>8}  {wanted:<12}  {verdict:<10}  {bar.note}".rstrip())
    for section in ("sample", "codec", "checkpoint"):
        out += [" ".join(f"{key}={value}" for key, value in row.items()) for row in results.figures(lines, section)]
    out += [f"FAILED {name}: {line['error']}" for name, line in lines.items() if not line["ok"]]
    return "\n".join(out)
