"""Proof: which parts of the method help. The variants of proof_ablation.yaml, trained and scored with several seeds, beside the paper's table.

    python benchmarks/proof_ablation.py [--learned runs/proof-learning] [--out runs/proof-ablation] [--seeds 3] [--minutes 240]
    python benchmarks/proof_ablation.py --variants mine.yaml --only baseline --only "my idea"
    python benchmarks/proof_ablation.py --first-seed 4 --merge earlier/ablation.json      # more seeds for an earlier comparison

Takes data, tokenizer and shards of a finished proof_learning.py, and for each seed and variant runs `videoar launch` and `videoar eval`. Each
goes on where it was stopped; after --minutes of one start no new command begins (exit code 75: start again). All variants of a seed come
before the next seed, so that an early stop leaves whole comparisons. Writes OUT/ablation.json, OUT/ablation.md (means over seeds with 95 %
intervals by Student's t, and each variant's difference from the first one, paired by seed), OUT/ablation.png; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from proof_learning import ROOT, Series

from pretrain.evaluation.intervals import of_seeds

Scores = dict[str, Any]


def _mean(name: str) -> Callable[[Scores], float]:
    return lambda scores: _value(scores["samples"][name])


def _value(found: Mapping[str, Any] | None) -> float:
    """Return a score's mean; NaN where its network's weights are not here."""
    return math.nan if found is None else float(found["mean"])


FIGURES: dict[str, tuple[str, Callable[[Scores], float]]] = {
    "fvd": ("FVD", _mean("fvd")),
    "kvd": ("KVD", _mean("kvd")),
    "frechet": ("Frechet VGG16 frames", _mean("frechet_vgg16_frames")),
    "drift": ("drift", lambda scores: _drift(scores)),
    "continued": ("FVD of continued clips", lambda scores: _value(scores["continued"]["model"]["fvd"])),
    "psnr": ("next frames PSNR", lambda scores: float(scores["prediction"]["model"]["psnr"]["mean"])),
    "lpips": ("LPIPS", lambda scores: float(scores["prediction"]["model"]["lpips_alex"]["mean"])),
    "bit_loss": ("bit loss", lambda scores: float(scores["bits"]["loss"])),
    "steps": ("forwards a clip", lambda scores: float(scores["speed"]["steps_per_clip"])),
    "seconds": ("seconds a clip", lambda scores: float(scores["speed"]["seconds_per_clip"])),
}
"""What is compared: title, and how it is read from scores.json."""


def _drift(scores: Scores) -> float:
    """Return how much the frame-level Frechet distance rises from the first to the last segment of the extended videos."""
    first, *_, last = [_value(segment["frechet_vgg16_frames"]) for segment in scores["drift"]]
    return last - first


def keys_of(name: str, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the keys that a variant sets, with those that it builds on. Raises KeyError naming a variant that is not there."""
    variant = variants[name]
    below = keys_of(variant["adds"], variants) if "adds" in variant else {}
    return below | variant.get("set", {})


def configured(base: Mapping[str, Any], common: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with sections of `common` laid over `base`, then the dotted `keys` set."""
    made: dict[str, Any] = copy.deepcopy(dict(base))
    for name, value in common.items():
        if "." in name or not isinstance(value, dict):
            keys = {name: value} | dict(keys)
        else:
            made[name] = {**made.get(name, {}), **value}
    for name, value in keys.items():
        *path, last = name.split(".")
        at = made
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return made


def figures(scores: Scores) -> dict[str, float]:
    """Return what is compared of one scores.json."""
    return {key: read(scores) for key, (_, read) in FIGURES.items()}


def summary(
    found: Mapping[str, Mapping[int, Mapping[str, float]]], variants: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return for each variant its figures by seed, their means with intervals, and the paired differences from the first variant.

    found: variant -> seed -> `figures`.
    """
    first = next(iter(found))
    rows: dict[str, Any] = {}
    for name, by_seed in found.items():
        row: dict[str, Any] = {"seeds": sorted(by_seed), "paper": variants[name].get("paper")}
        for key in FIGURES:
            values = {seed: each[key] for seed, each in by_seed.items()}
            less = [value - found[first][seed][key] for seed, value in values.items() if seed in found[first]]
            row[key] = {
                "mean": float(np.mean(list(values.values()))),
                "seeds": values,
                "interval": of_seeds(list(values.values())),
                "from_first": None if name == first or not less else {"mean": float(np.mean(less)), "interval": of_seeds(less)},
            }
        rows[name] = row
    return rows


def table(rows: Mapping[str, Any], references: Mapping[str, Any]) -> str:
    """Return the summary as a table in Markdown."""
    shown = [key for key in FIGURES if key not in ("seconds", "kvd")]
    lines = [
        "| variant | " + " | ".join(FIGURES[key][0] for key in shown) + " | FVD less the first's | paper's FVD |",
        "|---|" + "---|" * (len(shown) + 2),
    ]
    for name, row in rows.items():
        cells = [_cell(row[key]) for key in shown]
        less = row["fvd"]["from_first"]
        cells += ["" if less is None else _cell(less), "" if row["paper"] is None else f"{row['paper']:.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "References (FVD): " + ", ".join(f"{name} {value:.0f}" for name, value in references.items()) + "."]
    return "\n".join(lines) + "\n"


def _cell(found: Mapping[str, Any]) -> str:
    digits = 0 if abs(found["mean"]) >= 100 else 1 if abs(found["mean"]) >= 10 else 4 if abs(found["mean"]) < 1 else 2
    text = f"{found['mean']:.{digits}f}"
    if found["interval"] is not None and found["interval"][0] != found["interval"][1]:
        text += f" ± {(found['interval'][1] - found['interval'][0]) / 2:.{digits}f}"
    return text


def plot(rows: Mapping[str, Any], path: Path) -> None:
    """Draw FVD and drift of each variant: a point a seed, and the mean's interval."""
    figure = Figure(figsize=(13, 0.5 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, key in zip(axes, ("fvd", "drift", "bit_loss"), strict=True):
        for place, row in enumerate(rows.values()):
            axis.plot(list(row[key]["seeds"].values()), [place] * len(row[key]["seeds"]), "o", color="0.6", markersize=4)
            low, high = row[key]["interval"] or (row[key]["mean"],) * 2
            axis.errorbar(
                row[key]["mean"], place, xerr=[[row[key]["mean"] - low], [high - row[key]["mean"]]], fmt="s", capsize=3
            )
        axis.set_title(f"{FIGURES[key][0]} (lower is better)")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(rows)), list(rows))
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--learned", type=Path, default=Path("runs/proof-learning"), help="folder of a finished proof_learning.py"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/proof-ablation"))
    parser.add_argument("--variants", type=Path, default=ROOT / "benchmarks" / "proof_ablation.yaml")
    parser.add_argument("--only", action="append", default=[], metavar="VARIANT", help="may be given several times")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0, help="of training, in the place of what the file says")
    parser.add_argument(
        "--merge", type=Path, action="append", default=[], metavar="JSON", help="ablation.json with other seeds"
    )
    parser.add_argument("--minutes", type=float, default=240.0)
    parser.add_argument("--clips", type=int, default=48, help="clips to score")
    parser.add_argument("--drift-clips", type=int, default=24, help="videos to extend to four times the length")
    asked = parser.parse_args()
    learned, out = asked.learned.resolve(), asked.out.resolve()
    if not (learned / "done" / "tokenize-test").exists():
        parser.error(f"{learned} has no finished shards: run `make proof-learning` first, or name its folder with --learned")
    plan = yaml.safe_load(asked.variants.read_text())
    variants, base = plan["variants"], yaml.safe_load((learned / "learning.yaml").read_text())
    unknown = sorted(set(asked.only) - set(variants))
    if unknown:
        parser.error(f"{asked.variants} has no variant {', '.join(unknown)}: it has {', '.join(variants)}")
    chosen = [name for name in variants if not asked.only or name in asked.only]
    out.mkdir(parents=True, exist_ok=True)
    series = Series(out, time.monotonic() + 60 * asked.minutes)
    for stage in plan["common"]["curriculum.stages"][-1:] if asked.steps else ():
        stage["steps"] = asked.steps
    merged = [json.loads(path.read_text())["values"] for path in asked.merge]
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for name in chosen:
            folder = out / f"{name.replace(' ', '-')}-{seed}"
            folder.mkdir(exist_ok=True)
            own = {"run.dir": str(folder / "run"), "run.name": folder.name, "run.seed": seed}
            config = folder / "config.yaml"
            config.write_text(yaml.safe_dump(configured(base, plan["common"], keys_of(name, variants) | own), sort_keys=False))
            series.run(f"{folder.name}-train", "launch", "-c", str(config))
            series.run(
                f"{folder.name}-eval", "eval", "-c", str(config), "--output", str(folder / "scores"),
                "--clips", str(asked.clips), "--seeds", "1", "--drift-clips", str(asked.drift_clips),
            )  # fmt: skip
            report(out, chosen, variants, merged)
    print(json.dumps({"name": "proof_ablation", "seeds": asked.seeds, **report(out, chosen, variants, merged)}))
    return 0


def report(
    out: Path,
    chosen: list[str],
    variants: Mapping[str, Mapping[str, Any]],
    merged: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]] = (),
) -> dict[str, Any]:
    """Write what is known so far to OUT, and return mean FVD and drift by variant. merged: `values` of other ablation.json."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    references: dict[str, float] = {}
    for name in chosen:
        for path in sorted(out.glob("*/scores/scores.json")):
            slug, _, seed = path.parents[1].name.rpartition("-")
            if slug != name.replace(" ", "-"):
                continue
            scores = json.loads(path.read_text())
            found.setdefault(name, {})[int(seed)] = figures(scores)
            references = {key: _value(each["fvd"]) for key, each in scores["references"].items() if isinstance(each, dict)}
        for values in merged:
            for seed, each in values.get(name, {}).items():
                found.setdefault(name, {}).setdefault(int(seed), dict.fromkeys(FIGURES, math.nan) | dict(each))
    rows = summary(found, variants)
    written = {"values": found, "variants": rows, "references": references}
    (out / "ablation.json").write_text(json.dumps(written, indent=1) + "\n")
    text = table(rows, references)
    (out / "ablation.md").write_text(text)
    print(text, flush=True)
    plot(rows, out / "ablation.png")
    return {name: {key: round(row[key]["mean"], 4) for key in ("fvd", "drift")} for name, row in rows.items()}


if __name__ == "__main__":
    sys.exit(main())
