"""Commands on models: `train`, `launch`, `sample`, `export`. Called by: `cluster/cli/main.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli.options import ConfigPath, Overrides


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    for command in (train, launch, sample, export):
        app.command()(command)


def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Run one rank of the training job, as the launcher starts it; started by hand it is a job of one rank.

    Example: videoar train -c configs/demo.yaml train.stop_after=20
    """
    from pretrain.train import main

    raise typer.Exit(main(["-c", str(config), *(overrides or ())]))


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
    from cluster.launch.launcher import plan, run, unfinished

    resolved = load(config, overrides or ())
    job = plan(resolved, overrides=overrides or (), via=via, hostfile=hostfile)
    raise typer.Exit(run(resolved, job, finished=lambda: unfinished(resolved)))


def sample(
    config: ConfigPath,
    output: Annotated[Path, typer.Option(help="Folder for the videos, sheet.png and samples.json.")],
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text of one video; give it once for each video.")] = None,
    prefix: Annotated[Path | None, typer.Option(help="Image or video that every sample continues.")] = None,
    prefix_frames: Annotated[int, typer.Option(help="Frames taken of it; 0 takes half a clip.", min=0)] = 0,
    bucket: Annotated[str | None, typer.Option(help="Shape, such as f017x128x128 (default: the last stage's).")] = None,
    extend: Annotated[int, typer.Option(help="How often the clip is continued.", min=0)] = 0,
    weights: Annotated[Path | None, typer.Option(help="Run, checkpoint or exported model (default: run.dir).")] = None,
    batch: Annotated[int, typer.Option(help="Videos made at once.", min=1)] = 4,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one.")] = "auto",
) -> None:
    """Make videos from text with a trained model, or continue an image or a video.

    Example: videoar sample -c configs/demo.yaml --prompt "a cyclist rides by" --output samples
    """
    from cluster.config import load
    from cluster.launch.launcher import accelerators
    from pretrain.sampling.generate import run

    files = run(
        load(config, overrides or ()),
        prompt or [""],
        output,
        prefix=prefix,
        prefix_frames=prefix_frames,
        bucket=bucket,
        extend=extend,
        weights=weights,
        batch=batch,
        device=("cuda" if accelerators() else "cpu") if device == "auto" else device,
    )
    for file in files:
        typer.echo(str(file))


def export(
    source: Annotated[Path, typer.Argument(help="Run folder (its newest whole checkpoint) or checkpoint folder.")],
    output: Annotated[Path, typer.Argument(help="Folder for model.json and model.safetensors.")],
    average: Annotated[bool | None, typer.Option(help="Take the moving average (default: when the run kept one).")] = None,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Type of the weights.")] = "float32",
) -> None:
    """Gather a checkpoint's sharded weights into one safetensors file.

    Example: videoar export runs/demo model --dtype bfloat16
    """
    from pretrain.checkpoint.export import export

    made = export(source, output, average=average, dtype=dtype)
    typer.echo(f"{output}: step {made.step}{', moving average' if made.averaged else ''}")
