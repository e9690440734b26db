"""Commands on data: `tokenizer`, `tokenize`, `submit`, `shards`. Called by: `cluster/cli.py`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cluster.cli_options import ConfigPath, Overrides


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command()(submit)


def submit(
    config: ConfigPath,
    overrides: Overrides = None,
    address: Annotated[
        str,
        typer.Option(help="Ray dashboard, such as http://127.0.0.1:8265; without one, cluster.ray_address or a local head."),
    ] = "",
) -> None:
    """Submit `videoar tokenize` to a Ray cluster, show its log, and end with its exit code.

    Example: videoar submit -c configs/demo.yaml --address http://127.0.0.1:8265
    """
    from cluster.config import load
    from cluster.ray_submit import run

    resolved = load(config, overrides or ())
    words = [sys.executable, "-m", "cluster.cli", "tokenize", "-c", str(config.resolve()), *(overrides or ())]
    raise typer.Exit(run(resolved, words, address=address))
