"""Proof: it learns. Tokenizer and transformer from scratch through two stages under ZeRO-3, then scores on held-out clips.

    python benchmarks/proof_learning.py [--data moving-mnist|freeway|weizmann] [--out runs/proof-learning] [--minutes 120]

A series of `videoar` commands with proof_learning.yaml: data, tokenizer train, tokenize (train and held-out clips), launch, eval. Each goes
on where it was stopped, so the whole may be stopped at any moment and started again; after --minutes of one start no new command begins,
and one that trains is stopped with a checkpoint (exit code 75: start again). `steps.json` has the seconds of each command, all starts
together, `machines.json` where they ran; the last line is one JSON object: of `videoar eval`, with whether the bars hold: predictions
better than copying the last frame in PSNR and in LPIPS, FVD of samples below that of shuffled and of frozen real clips. Exit code 1 when a
bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from proof_clips import shared

from cluster.config import ConfigError, load
from cluster.config.precision import hardware
from cluster.runtime.atomic_files import write_text

ROOT = Path(__file__).resolve().parents[1]
STOPPED = 75
RATES = {"moving-mnist": 8, "freeway": 15, "weizmann": 25}
"""Frames per second at which each data set is read."""
RECIPES: dict[str, tuple[str, ...]] = {
    # The first three: 1 dB better after 1,500 steps than without. The others: coarse scales that say what is where, and first frames
    # (docs/log.md, 2026-11-28).
    "moving-mnist": (
        "tokenizer.loss.hardest=0.25",
        "tokenizer.training.unquantized_steps=300",
        "tokenizer.training.quantization_ramp=300",
        "tokenizer.training.quantizer_dropout=0.5",
        "curriculum.stages.1.mix=[{bucket: f017x64x64, frames: 1, weight: 1, batch: 16}, {bucket: f017x64x64, weight: 2, batch: 4}]",
    ),
    # Cars of 16 pixels on a road that stands still: without the first three the tokenizer shows the road alone (docs/log.md, 2026-11-28).
    "freeway": (
        "tokenizer.loss.hardest=0.05",
        "tokenizer.training.unquantized_steps=1000",
        "tokenizer.training.quantization_ramp=1000",
        "tokenizer.training.quantizer_dropout=0.5",
        "curriculum.stages.1.mix=[{bucket: f017x64x64, frames: 1, weight: 1, batch: 16}, {bucket: f017x64x64, weight: 1, batch: 4}]",
    ),
    # 48 strips of six people, which a tokenizer without augmentation learns by heart.
    "weizmann": (
        "tokenizer.training.unquantized_steps=200",
        "tokenizer.training.quantization_ramp=600",
        "tokenizer.training.augment={zoom: 2, contrast: 0.3, colour: 0.1, brightness: 25, backwards: true}",
        "tokenizer.training.mirror=true",
    ),
}
"""What each data set changes of proof_learning.yaml; overrides of the command line come after it."""
GRACE = 180
"""Seconds that a command has to stop after its time."""


@dataclass
class Series:
    """Commands one after the other, with their times."""

    out: Path
    deadline: float

    def run(self, name: str, *words: str) -> None:
        """Run one command that can go on, unless an earlier start finished it. Ends the program when the time is over."""
        done = self.out / "done" / name
        if done.exists():
            print(f"{name}: done before", flush=True)
            return
        if time.monotonic() > self.deadline:
            print(f"the time is over before `{name}`: start again to go on", flush=True)
            raise SystemExit(STOPPED)
        print(f"$ videoar {' '.join(words)}", flush=True)
        began = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the command would go on without its series
        process = subprocess.Popen([sys.executable, "-m", "cluster.cli.main", *words], env=environment)
        try:
            code = process.wait(timeout=max(1.0, self.deadline - began))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=GRACE)
            code = STOPPED
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)  # a terminal's signal reached it too; within two seconds both are one
            process.wait(timeout=GRACE)
            code = STOPPED
        finally:
            signal.signal(signal.SIGTERM, before)
        self._count(name, time.monotonic() - began)
        if code == STOPPED:
            print(f"`{name}` was stopped: start again to go on", flush=True)
        if code != 0:
            raise SystemExit(code)
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()

    def _count(self, name: str, seconds: float) -> None:
        path = self.out / "steps.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        known[name] = round(known.get(name, 0.0) + seconds, 1)
        path.write_text(json.dumps(known, indent=1) + "\n")


def processor() -> str:
    """Return the name of this machine's processor, its kind as torch sees it, and torch's version."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {len(names)} cores, {hardware('cpu').name}, torch {torch.__version__}"


def verdict(scores: dict) -> dict[str, bool]:
    """Which bars hold; a score that could not be computed holds none."""
    model, copy = scores["prediction"]["model"], scores["prediction"]["copy_last_frame"]

    def fvd(found: dict) -> float:
        return float("nan") if found["fvd"] is None else found["fvd"]["mean"]

    return {
        "psnr_above_copying": model["psnr"]["mean"] > copy["psnr"]["mean"],
        "lpips_below_copying": "lpips_alex" in model and model["lpips_alex"]["mean"] < copy["lpips_alex"]["mean"],
        "fvd_below_shuffled": fvd(scores["samples"]) < fvd(scores["references"]["shuffled"]),
        "fvd_below_frozen": fvd(scores["samples"]) < fvd(scores["references"]["frozen"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(RATES), default="moving-mnist")
    parser.add_argument("--strips", type=Path, default=shared() / "data" / "weizmann64", help="for weizmann")
    parser.add_argument("--out", type=Path, default=Path("runs/proof-learning"))
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--train", type=int, default=4000, help="training clips")
    parser.add_argument("--test", type=int, default=256, help="held-out clips")
    parser.add_argument("--clips", type=int, default=64, help="clips to score")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for smaller tries")
    asked = parser.parse_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    machines = out / "machines.json"
    known = json.loads(machines.read_text()) if machines.exists() else []
    machines.write_text(json.dumps(sorted({*known, processor()})) + "\n")
    data, config = out / "data", out / "learning.yaml"
    text = (ROOT / "benchmarks" / "proof_learning.yaml").read_text().replace("DATA", str(data)).replace("OUT", str(out))
    config.write_text(text)
    fps = RATES[asked.data]
    rates = [f"{key}={fps}" for key in ("pipeline.fps", "tokenizer.training.fps", "sample.fps")]
    words = [*rates, *RECIPES[asked.data], *asked.overrides]
    try:
        whole = load(config, words)
    except ConfigError as error:
        parser.error(str(error))
    write_text(config, whole.yaml())  # the ablation starts from it
    given = ["-c", str(config)]
    series = Series(out, time.monotonic() + 60 * asked.minutes)
    made = (
        ["--train", str(asked.train), "--test", str(asked.test)] if asked.data != "weizmann" else ["--from", str(asked.strips)]
    )
    series.run("data", "data", asked.data, str(data), *made)
    series.run("tokenizer", "tokenizer", "train", *given)
    series.run("tokenize", "tokenize", *given)
    series.run("tokenize-test", "tokenize", *given, f"corpus.videos=[{data}/test]", f"pipeline.output={out}/shards-test")
    series.run("train", "launch", *given)
    series.run(
        "eval", "eval", *given, "--output", str(out / "scores"), "--clips", str(asked.clips), "--seeds", str(asked.seeds)
    )
    scores = json.loads((out / "scores" / "scores.json").read_text())
    bars = verdict(scores)
    seconds = json.loads((out / "steps.json").read_text())
    line = {
        "name": "proof_learning",
        "data": asked.data,
        "fvd": scores["samples"]["fvd"] and scores["samples"]["fvd"]["mean"],
        "psnr": scores["prediction"]["model"]["psnr"]["mean"],
        "copy_psnr": scores["prediction"]["copy_last_frame"]["psnr"]["mean"],
        "bit_loss": scores["bits"]["loss"],
        **scores["speed"],
        "seconds": seconds,
        **bars,
    }
    print(json.dumps(line))
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
