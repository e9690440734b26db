"""What an evaluation shows: a table on the console, plots.png and sheet.png.

In:  scores.json's content, and a few clips.
Out: files in OUT, lines on the console.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from pretrain.sampling.video_sink import contact_sheet, sheet_frames

ROWS = 4
"""Clips on sheet.png, each with three rows: the real clip, a sample from its caption, a prediction from its first frames."""
SETS = (("fvd", "FVD"), ("fvd_extrapolated", "FVD, N to inf"), ("kvd", "KVD"), ("frechet_vgg16_frames", "Frechet VGG16 frames"),
        ("motion", "motion"), ("flicker", "flicker"))  # fmt: skip
CONTINUED = (
    ("model", "clips continued by the model"),
    ("copy_last_frame", "continued by copying"),
    ("tokenizer", "continued, tokenizer"),
)
"""Sets whose first frames are real, as scores.json and the tables name them."""


def write(output: Path, scores: Mapping[str, Any], real: Tensor, samples: Tensor, predictions: Tensor) -> None:
    """Write plots.png and sheet.png, and print the tables; the last line is one JSON object."""
    known = int(scores["prediction"]["known_frames"])
    at = sheet_frames(real.shape[1])
    rows = [[video[place].numpy() for place in at] for trio in zip(real[:ROWS], samples, predictions) for video in trio]
    contact_sheet(rows, [place < known for place in at], unmarked=range(1, len(rows), 3)).save(output / "sheet.png")
    _plots(output / "plots.png", scores)
    for table in tables(scores):
        Console(width=160).print(table)
    for note in scores["notes"]:
        print(f"note: {note}", flush=True)
    short = {
        "name": "eval",
        "output": str(output),
        "bucket": scores["bucket"],
        "clips": scores["samples"]["clips"],
        "seeds": scores["seeds"],
    }
    short |= {key: _mean(scores["samples"][key]) for key, _ in SETS}
    short |= {
        "continued_fvd": _mean(scores["continued"]["model"]["fvd"]),
        "copied_fvd": _mean(scores["continued"]["copy_last_frame"]["fvd"]),
    }
    short |= {f"prediction_{key}": value["mean"] for key, value in scores["prediction"]["model"].items()}
    short |= {f"copy_{key}": value["mean"] for key, value in scores["prediction"]["copy_last_frame"].items()}
    print(json.dumps({**short, "bit_loss": scores["bits"]["loss"], **scores["speed"]}), flush=True)


def tables(scores: Mapping[str, Any]) -> list[Table]:
    """Return the tables: sets of clips, predictions, drift."""
    clips = Table(
        "",
        *(title for _, title in SETS),
        title=f"{scores['bucket']}: {scores['samples']['clips']} clips x {len(scores['seeds'])} seeds",
    )
    clips.add_row("samples", *(cell(scores["samples"][key]) for key, _ in SETS))
    for name, label in CONTINUED:
        clips.add_row(label, *(cell(scores["continued"][name][key]) for key, _ in SETS))
    for name, found in scores["references"].items():
        if isinstance(found, Mapping):
            clips.add_row(
                f"{name} ({scores['references']['of']})" if name in ("shuffled", "frozen") else name,
                *(cell(found[key]) for key, _ in SETS),
            )
    frames = Table("", "PSNR dB", "SSIM", "LPIPS alex", title=f"frames {scores['prediction']['known_frames']} and later")
    for name in ("model", "copy_last_frame", "tokenizer"):
        found = scores["prediction"][name]
        frames.add_row(name.replace("_", " "), *(cell(found.get(key)) for key in ("psnr", "ssim", "lpips_alex")))
    made = [clips, frames]
    if "drift" in scores:
        drift = Table("frames", *(title for _, title in SETS), title=f"extended videos, {scores['drift'][0]['clips']} clips")
        for segment in scores["drift"]:
            drift.add_row("{} to {}".format(*segment["frames"]), *(cell(segment[key]) for key, _ in SETS))
        made.append(drift)
    return made


def _mean(value: Mapping[str, Any] | None) -> float | None:
    return None if value is None else float(value["mean"])


def cell(value: Mapping[str, Any] | None) -> str:
    """Return a mean, with the wider of its 95 % intervals."""
    if value is None:
        return "-"
    spans = [span for span in (value.get("interval_clips"), value.get("interval_seeds")) if span]
    low, high = max(spans, key=lambda span: span[1] - span[0], default=(value["mean"],) * 2)
    return f"{value['mean']:.4g}" if low == high else f"{value['mean']:.4g} ({low:.4g} to {high:.4g})"


def _plots(path: Path, scores: Mapping[str, Any]) -> None:
    """Draw the loss by scale and by frame, PSNR of predicted frames, and drift."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    by_scale, by_frame, predicted, drift = figure.subplots(2, 2).flatten()
    bits = scores["bits"]
    by_scale.bar(list(bits["by_scale"]), list(bits["by_scale"].values()))
    by_scale.set(title="bit loss by scale, nats per bit", xlabel="scale")
    by_frame.plot(range(1, len(bits["by_frame"]) + 1), bits["by_frame"], marker="o")
    by_frame.set(title="bit loss by latent frame, nats per bit", xlabel="latent frame")
    by_frame.xaxis.get_major_locator().set_params(integer=True)
    known = scores["prediction"]["known_frames"]
    for name in ("model", "copy_last_frame", "tokenizer"):
        values = scores["prediction"][name]["psnr"]["by_frame"]
        predicted.plot(range(known + 1, known + 1 + len(values)), values, marker=".", label=name.replace("_", " "))
    predicted.set(title="PSNR of predicted frames, dB", xlabel="frame")
    predicted.legend(frameon=False)
    drift.set(title="extended videos, by segment (first = 1)", xlabel="seconds")
    for key, title in SETS:
        values = [_mean(segment[key]) for segment in scores.get("drift", ())]
        if values and None not in values and values[0]:
            drift.plot(
                [segment["seconds"][1] for segment in scores["drift"]],
                [float(v or 0) / values[0] for v in values],
                marker="o",
                label=title,
            )
    if drift.lines:
        drift.legend(frameon=False)
    figure.savefig(path, dpi=110)
