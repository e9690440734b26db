"""Commands on data: `tokenizer`, `tokenize`, `submit`. Called by: `cluster/cli.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_options import ConfigPath, Overrides

tokenizer_app = typer.Typer(help="Train and try the video tokenizer.", no_args_is_help=True, rich_markup_mode=None)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(tokenizer_app, name="tokenizer")
    app.command()(tokenize)
    app.command()(submit)


@tokenizer_app.command("train")
def tokenizer_train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train a tokenizer on the corpus, under the deepspeed launcher; run again, it goes on from its checkpoint.

    Example: videoar tokenizer train -c configs/demo.yaml
    """
    from cluster.config import load
    from cluster.launch import plan, run
    from tokenizer.config import TokenizerConfig
    from tokenizer.train import finished, recipe_digest

    resolved = load(config, overrides or ())
    folder, digest = resolved.get(TokenizerConfig).weights, recipe_digest(resolved)
    if finished(folder, digest):
        return

    def missing() -> str:
        return "" if finished(folder, digest) else f"{folder} holds no finished tokenizer"

    job = plan(resolved, "pipeline.tokenizer_job", words=("train",), overrides=overrides or ())
    raise typer.Exit(run(resolved, job, folder=folder, finished=missing))


@tokenizer_app.command("reconstruct")
def tokenizer_reconstruct(
    config: ConfigPath,
    video: Annotated[str, typer.Argument(help="Video: a path or URL.")],
    output: Annotated[Path, typer.Option(help="The mp4 that is written: original and reconstruction side by side.")],
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(help="Seconds from the start of the video.", min=0.1)] = 4.0,
    size: Annotated[int, typer.Option(help="Height and width in pixels; 0 takes the largest training shape.", min=0)] = 0,
) -> None:
    """Encode and decode a video, and write both side by side.

    Example: videoar tokenizer reconstruct -c configs/demo.yaml clip.mp4 --output side-by-side.mp4
    """
    from cluster.config import load
    from pipeline.tokenizer_job import reconstruct

    psnr = reconstruct(load(config, overrides or ()), video, output, seconds, size)
    typer.echo(f"{output}: PSNR {psnr:.2f} dB")


def tokenize(config: ConfigPath, overrides: Overrides = None) -> None:
    """Turn the corpus into token shards, as a Ray job; run again, it goes on where it stopped.

    Under `ray job submit` it joins the cluster that runs it, else it starts a Ray of its own.

    Example: ray job submit --address http://127.0.0.1:8265 -- videoar tokenize -c configs/demo.yaml
    """
    from cluster.config import load
    from pipeline.ray_job import tokenize

    tokenize(load(config, overrides or ()))


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
