"""What docs/results.md shows, made of the folders of finished proofs: tables, curves, grids of samples, videos.

    python benchmarks/results.py runs/proof-learning [more folders of proof_learning.py] [--out runs/results]

Writes for each folder OUT/NAME.md (scores, times, digests, machine), OUT/NAME-curves.png, OUT/NAME-samples.png (six captions),
OUT/NAME-predictions.png (real clip, sample, prediction), OUT/NAME-extended.png, and OUT/videos/NAME-*.mp4 (twelve samples, and six extended
to four times the trained length). OUT/SHA256SUMS names every file.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.video.writer import write_video
from pretrain.evaluation import report
from pretrain.evaluation.report import cell
from pretrain.sampling.video_sink import contact_sheet, sheet_frames

GRID = (3, 4)
"""Rows and columns of clips in a video of samples."""
SETS = tuple(each for each in report.SETS if each[0] != "flicker")


def table(folder: Path, scores: Mapping[str, Any]) -> str:
    """Return the scores of one proof in Markdown."""
    data = json.loads((folder / "data" / "dataset.json").read_text())
    with (folder / "data" / "captions.csv").open(newline="") as text:
        splits = Counter(row["file"].partition("/")[0] for row in csv.DictReader(text))
    seconds = json.loads((folder / "steps.json").read_text())
    machines = json.loads((folder / "machines.json").read_text())
    lines = [
        f"Data: {data['name']}, {splits['train']} videos to train, {splits['test']} held out, digest {data['digest'][:12]}.",
        f"Model {scores['model'][:12]}, tokenizer {scores['tokenizer'][:12]}. Scored on {scores['samples']['clips']} held-out clips, "
        f"seeds {', '.join(map(str, scores['seeds']))}. Machine: {'; '.join(machines)}.",
        "Minutes: " + ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items())
        + f"; together {sum(seconds.values()) / 60:.0f}.",
        "",
        "| clips | " + " | ".join(title for _, title in SETS) + " |",
        "|---|" + "---|" * len(SETS),
        "| **samples** | " + " | ".join(cell(scores["samples"][key]) for key, _ in SETS) + " |",
    ]  # fmt: skip
    for name, label in report.CONTINUED if "continued" in scores else ():  # earlier versions had no such scores
        lines.append(f"| {label} | " + " | ".join(cell(scores["continued"][name][key]) for key, _ in SETS) + " |")
    for name, found in scores["references"].items():
        if isinstance(found, dict):
            label = {"real": "other real clips", "tokenizer": "real clips through the tokenizer"}.get(
                name, f"{name} real clips"
            )
            lines.append(f"| {label} | " + " | ".join(cell(found[key]) for key, _ in SETS) + " |")
    predicted = scores["prediction"]
    lines += ["", f"| frames {predicted['known_frames'] + 1} to {predicted['known_frames'] + predicted['predicted_frames']} from those "
              "before | PSNR, dB | SSIM | LPIPS alex |", "|---|---|---|---|"]  # fmt: skip
    for name, label in (
        ("model", "**model**"),
        ("copy_last_frame", "copying the last frame"),
        ("tokenizer", "tokenizer alone"),
    ):
        lines.append(
            f"| {label} | " + " | ".join(cell(predicted[name].get(key)) for key in ("psnr", "ssim", "lpips_alex")) + " |"
        )
    if "drift" in scores:
        lines += ["", "| extended, frames | " + " | ".join(title for _, title in SETS) + " |", "|---|" + "---|" * len(SETS)]
        for each in scores["drift"]:
            lines.append(
                f"| {each['frames'][0]} to {each['frames'][1]} | " + " | ".join(cell(each[key]) for key, _ in SETS) + " |"
            )
    bits, speed = scores["bits"], scores["speed"]
    lines += [
        "",
        f"Bit loss {bits['loss']:.4f} nats a bit on held-out tokens (0.6931 is chance); by scale "
        + ", ".join(f"{name} {value:.3f}" for name, value in bits["by_scale"].items())
        + f". {speed['steps_per_clip']} forwards and {speed['seconds_per_clip']:.2f} s a clip ({speed['device']}).",
    ]
    return "\n".join(lines) + "\n"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Return running means, shorter by width - 1."""
    return np.convolve(values, np.ones(width) / width, mode="valid")


def curves(folder: Path, path: Path) -> None:
    """Draw the tokenizer's PSNR and the transformer's loss by step."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    found = rows_of(folder / "run" / "tokenizer-metrics.jsonl")
    for bucket in sorted({row["bucket"] for row in found}):
        rows = [row for row in found if row["bucket"] == bucket]
        width = min(10, len(rows))
        left.plot(
            [row["step"] for row in rows][width - 1 :], smooth(np.array([row["psnr"] for row in rows]), width), label=bucket
        )
    left.set(title="tokenizer: PSNR of training clips, dB (mean of 10)", xlabel="step")
    found = [row for row in rows_of(folder / "run" / "metrics.jsonl") if "loss" in row]
    for stage in dict.fromkeys(row["stage_name"] for row in found):
        rows = [row for row in found if row["stage_name"] == stage]
        width = min(5, len(rows))
        losses = smooth(np.array([row["loss"] for row in rows]), width)
        right.plot([row["step"] for row in rows][width - 1 :], losses, label=stage)
    right.set(title="transformer: bit loss, nats (mean of 5)", xlabel="step")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=100)


def clips_of(folder: Path, name: str) -> torch.Tensor:
    """Return all videos of a set that the evaluation made, uint8 (B,T,H,W,3)."""
    files = sorted((folder / "scores" / "videos").glob(f"{name}-*.safetensors"))
    return torch.cat([safetensors.torch.load_file(file)["frames"] for file in files])


def sheet(clips: torch.Tensor, path: Path) -> None:
    """Write some frames of each clip as a row."""
    at = sheet_frames(clips.shape[1])
    contact_sheet([[clip[place].numpy() for place in at] for clip in clips], [False] * len(at)).save(path)


def tiled(clips: torch.Tensor, rows: int) -> np.ndarray:
    """Return clips side by side, twice as large, with white between them: uint8 (T,H,W,3)."""
    shown = clips.repeat_interleave(2, 2).repeat_interleave(2, 3)
    shown = torch.nn.functional.pad(shown, (0, 0, 0, 4, 0, 4), value=255)
    columns = -(-len(shown) // rows)
    lines = [torch.cat(list(shown[row * columns : (row + 1) * columns]), dim=2) for row in range(rows)]
    return torch.cat(lines, dim=1).numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of finished proof_learning.py")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    asked = parser.parse_args()
    (asked.out / "videos").mkdir(parents=True, exist_ok=True)
    for folder in asked.folders:
        path = folder / "scores" / "scores.json"
        if not path.exists():
            parser.error(f"{folder} has no scores yet: run benchmarks/proof_learning.py --out {folder} to its end")
        scores = json.loads(path.read_text())
        name = json.loads((folder / "data" / "dataset.json").read_text())["name"]
        text = table(folder, scores)
        (asked.out / f"{name}.md").write_text(text)
        print(f"# {name}\n\n{text}")
        curves(folder, asked.out / f"{name}-curves.png")
        shutil.copy(folder / "scores" / "sheet.png", asked.out / f"{name}-predictions.png")
        first = scores["seeds"][0]
        samples = clips_of(folder, f"samples-seed{first}")
        sheet(samples[:6], asked.out / f"{name}-samples.png")
        count = GRID[0] * GRID[1]
        write_video(asked.out / "videos" / f"{name}-samples.mp4", tiled(samples[:count], GRID[0]), scores_fps(scores))
        if "drift" in scores:
            longer = clips_of(folder, "extended*")
            sheet(longer[:4], asked.out / f"{name}-extended.png")
            write_video(asked.out / "videos" / f"{name}-extended.mp4", tiled(longer[:6], 2), scores_fps(scores))
    files = sorted(file for file in asked.out.rglob("*") if file.is_file() and file.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(asked.out)}" for file in files]
    (asked.out / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return 0


def scores_fps(scores: Mapping[str, Any]) -> float:
    """Return the frames per second of what was scored."""
    return float(scores["fps"])


if __name__ == "__main__":
    sys.exit(main())
