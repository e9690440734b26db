"""Commands on models: `train`, `launch`, `sample`, `export`. Called by: `cluster/cli.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli_options import ConfigPath, Overrides


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command()(launch)


def launch(
    config: ConfigPath,
    overrides: Overrides = None,
    hostfile: Annotated[Path | None, typer.Option(help="Hosts, one line `HOST slots=N` each; they are reached by ssh.")] = None,
    via: Annotated[
        Literal["local", "ssh"] | None, typer.Option(help="local: this machine (default); ssh: the hosts of --hostfile.")
    ] = None,
) -> None:
    """Train: start one rank for each device under the deepspeed launcher, and start again after a failure.

    Exit code 75: stopped cleanly with a checkpoint; the same command goes on from it.

    Example: videoar launch -c configs/demo.yaml train.stop_after=20
    """
    from cluster.config import load
    from cluster.launch import plan, run, unfinished

    resolved = load(config, overrides or ())
    job = plan(resolved, overrides=overrides or (), via=via, hostfile=hostfile)
    raise typer.Exit(run(resolved, job, finished=lambda: unfinished(resolved)))
