"""Commands on data: `tokenizer`, `tokenize`, `submit`. Called by: `cluster/cli/main.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli.options import ConfigPath, Overrides

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
    from cluster.launch.launcher import plan, run
    from tokenizer.config import TokenizerConfig
    from tokenizer.training.train import finished, recipe_digest

    resolved = load(config, overrides or ())
    folder, digest = resolved.get(TokenizerConfig).weights, recipe_digest(resolved)
    if finished(folder, digest):
        return

    def missing() -> str:
        return "" if finished(folder, digest) else f"{folder} holds no finished tokenizer"

    job = plan(resolved, "pipeline.tokenizer_jobs.main", words=("train",), overrides=overrides or ())
    raise typer.Exit(run(resolved, job, folder=folder, finished=missing))


@tokenizer_app.command("import")
def tokenizer_import(
    source: Annotated[Path, typer.Option("--from", help="Public image tokenizer, .pth or .safetensors.")],
    folder: Annotated[Path, typer.Option("--output", help="Tokenizer folder that is written.")],
    bits: Annotated[int | None, typer.Option(help="Bits a position of the result (default: the public ones).")] = None,
    ema: Annotated[bool | None, typer.Option(help="Take the moving average (default: where there is one).")] = None,
    older: Annotated[Literal["zero", "random"], typer.Option(help="Earlier time slices of the inflated kernels.")] = "zero",
    temporal_stride: Annotated[int, typer.Option(help="Frames a latent frame: 1, 2 or 4.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
) -> None:
    """Make a causal 3D tokenizer out of a public image tokenizer's weights.

    Example: videoar tokenizer import --from infinity_vae_d32.pth --output weights/image48 --bits 48
    """
    from tokenizer.codec.image_import import ImportFailure, import_public

    strides: dict[int, Literal[1, 2, 4]] = {1: 1, 2: 2, 4: 4}
    if temporal_stride not in strides:
        raise ImportFailure(f"--temporal-stride {temporal_stride}: take 1, 2 or 4")
    spec = import_public(source, folder, bits=bits, ema=ema, older=older, temporal_stride=strides[temporal_stride], seed=seed)
    typer.echo(
        f"{folder}: {spec.bits} bits, stride {spec.temporal_stride}x{spec.spatial_stride}x{spec.spatial_stride}, digest {spec.digest}"
    )


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
    from pipeline.tokenizer_jobs.reconstruct import reconstruct

    psnr = reconstruct(load(config, overrides or ()), video, output, seconds, size)
    typer.echo(f"{output}: PSNR {psnr:.2f} dB")


@tokenizer_app.command("eval")
def tokenizer_eval(
    config: ConfigPath,
    overrides: Overrides = None,
    clips: Annotated[int, typer.Option(help="Clips of each training shape.", min=1)] = 64,
    report: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file too.")] = None,
) -> None:
    """Score a tokenizer's reconstructions on the corpus; the last line is one JSON object.

    Example: videoar tokenizer eval -c configs/demo.yaml --json scores.json
    """
    from cluster.config import load
    from pipeline.tokenizer_jobs.evaluate import evaluate

    evaluate(load(config, overrides or ()), clips=clips, report=report)


def tokenize(
    config: ConfigPath,
    overrides: Overrides = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try refused videos and clips again, into new shards.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Check every byte first and make damaged shards again.")] = False,
) -> None:
    """Turn the corpus into token shards, as a Ray job; run again, it goes on where it stopped.

    Under `ray job submit` it joins the cluster that runs it, else it starts a Ray of its own.

    Example: ray job submit --address http://127.0.0.1:8265 -- videoar tokenize -c configs/demo.yaml
    """
    from cluster.config import load
    from pipeline.job.tokenize import tokenize

    tokenize(load(config, overrides or ()), retry=retry, repair=repair)


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
    from cluster.launch.ray_submit import run

    resolved = load(config, overrides or ())
    words = [sys.executable, "-m", "cluster.cli.main", "tokenize", "-c", str(config.resolve()), *(overrides or ())]
    raise typer.Exit(run(resolved, words, address=address))
