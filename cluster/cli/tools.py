"""Commands that look at runs and speeds: `compare`, `bench`. Called by: `cluster/cli/main.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

BENCHMARKS = {
    "train": "train_model.py",
    "load": "load.py",
    "tokenize": "bench_tokenize.py",
    "codec": "bench_codec.py",
    "sample": "sample_model.py",
}


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command()(compare)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)


def compare(
    first: Annotated[Path, typer.Argument(help="Run folder.")],
    second: Annotated[Path, typer.Argument(help="Another run folder.")],
) -> None:
    """Say how two runs differ: settings, code, data, and the losses of the steps that both have.

    Example: videoar compare runs/demo runs/no-correction
    """
    from pretrain.runs.compare import compare, lines

    for line in lines(compare(first, second), first, second):
        typer.echo(line)


def bench(
    context: typer.Context,
    name: Annotated[Literal["train", "load", "tokenize", "codec", "sample"], typer.Argument(help="What to measure.")],
) -> None:
    """Measure a part against the plain alternative and the physical limit, all in this run; what follows NAME goes to it.

    The last line is one JSON object. `bench tokenize --codec-only` is `bench codec`.

    Example: videoar bench train --rounds 1
    """
    import subprocess
    import sys

    if name == "tokenize" and "--codec-only" in context.args:
        name, context.args = "codec", [word for word in context.args if word != "--codec-only"]
    from cluster.runtime.source_tree import source_root

    script = source_root() / "benchmarks" / BENCHMARKS[name]
    if not script.is_file():
        raise FileNotFoundError(2, "no benchmarks here; run it from a clone of the repository", str(script))
    raise typer.Exit(subprocess.run([sys.executable, str(script), *context.args], check=False).returncode)
