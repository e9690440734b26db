"""Commands on data: `tokenizer ...`, `tokenize`, `submit`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli.options import ConfigPath, Overrides

tokenizer_app = typer.Typer(help="Train, import and evaluate the video tokenizer.", no_args_is_help=True, rich_markup_mode=None)


@tokenizer_app.command("train")
def tokenizer_train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train a tokenizer on the corpus with DeepSpeed's launcher; run it again to continue from its checkpoint.

    Example: videoar tokenizer train -c configs/demo.yaml
    """
    from cluster.config import RunConfig, load
    from cluster.launch.launcher import run, training_job
    from tokenizer.config import TokenizerConfig
    from tokenizer.training.train import CHECKPOINTS, finished, recipe_digest

    resolved = load(config, overrides or ())
    folder, digest = resolved.get(TokenizerConfig).weights, recipe_digest(resolved)
    if finished(folder, digest):
        return

    def unfinished() -> str:
        return "" if finished(folder, digest) else f"{folder} has no finished tokenizer"

    job = training_job(resolved, "pipeline.tokenizer_jobs.main", subcommand=("train",), overrides=overrides or ())
    checkpoints = resolved.get(RunConfig).dir / CHECKPOINTS
    raise typer.Exit(run(resolved, job, folder=folder, checkpoints=checkpoints, unfinished=unfinished))


@tokenizer_app.command("import")
def tokenizer_import(
    source: Annotated[Path, typer.Option("--from", help="Weights of a public image tokenizer, .pth or .safetensors.")],
    folder: Annotated[Path, typer.Option("--output", help="Folder for the tokenizer.")],
    bits: Annotated[int | None, typer.Option(help="Bits per token of the result (default: as in the public weights).")] = None,
    ema: Annotated[bool | None, typer.Option(help="Use the moving average of the weights (default: if there is one).")] = None,
    older: Annotated[
        Literal["zero", "random"], typer.Option(help="How to fill the earlier time slices of the inflated kernels.")
    ] = "zero",
    temporal_stride: Annotated[int, typer.Option(help="Pixel frames per latent frame: 1, 2 or 4.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the random values.")] = 0,
) -> None:
    """Turn the weights of a public image tokenizer into a causal 3D tokenizer.

    Example: videoar tokenizer import --from infinity_vae_d32.pth --output weights/image48 --bits 48
    """
    from tokenizer.codec.image_import import ImportFailure, import_public

    strides: dict[int, Literal[1, 2, 4]] = {1: 1, 2: 2, 4: 4}
    if temporal_stride not in strides:
        raise ImportFailure(f"--temporal-stride {temporal_stride}: must be 1, 2 or 4")
    spec = import_public(source, folder, bits=bits, ema=ema, older=older, temporal_stride=strides[temporal_stride], seed=seed)
    typer.echo(
        f"{folder}: {spec.bits} bits, stride {spec.temporal_stride}x{spec.spatial_stride}x{spec.spatial_stride}, digest {spec.digest}"
    )


@tokenizer_app.command("reconstruct")
def tokenizer_reconstruct(
    config: ConfigPath,
    video: Annotated[str, typer.Argument(help="Video file or URL.")],
    output: Annotated[Path, typer.Option(help="The mp4 to write: original and reconstruction side by side.")],
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(help="Seconds to use, from the start of the video.", min=0.1)] = 4.0,
    size: Annotated[int, typer.Option(help="Height and width in pixels; 0: those of the largest training shape.", min=0)] = 0,
    by_scale: Annotated[
        bool, typer.Option("--by-scale", help="Also what the scales up to each one show, coarse to fine.")
    ] = False,
) -> None:
    """Encode and decode a video, and write original and reconstruction side by side.

    Example: videoar tokenizer reconstruct -c configs/demo.yaml clip.mp4 --output side-by-side.mp4
    """
    from cluster.config import load
    from pipeline.tokenizer_jobs.evaluate import reconstruct

    psnr = reconstruct(load(config, overrides or ()), video, output, seconds, size, by_scale=by_scale)
    typer.echo(f"{output}: PSNR {psnr:.2f} dB")


@tokenizer_app.command("eval")
def tokenizer_eval(
    config: ConfigPath,
    overrides: Overrides = None,
    clips: Annotated[int, typer.Option(help="Clips per training shape.", min=1)] = 64,
    report: Annotated[Path | None, typer.Option("--json", help="Also write the scores to this file.")] = None,
) -> None:
    """Measure the reconstruction quality of a tokenizer on the corpus; the last line is one JSON object.

    Example: videoar tokenizer eval -c configs/demo.yaml --json scores.json
    """
    from cluster.config import load
    from pipeline.tokenizer_jobs.evaluate import evaluate

    evaluate(load(config, overrides or ()), clips=clips, report=report)


def tokenize(
    config: ConfigPath,
    overrides: Overrides = None,
    retry: Annotated[bool, typer.Option("--retry", help="Process rejected videos and clips again, into new shards.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Verify every byte first and recreate damaged shards.")] = False,
    recaption: Annotated[
        bool, typer.Option("--recaption", help="Put changed captions into the shards, without encoding anew.")
    ] = False,
) -> None:
    """Turn the corpus into token shards, on Ray; run it again to continue where it stopped.

    Under `ray job submit` it uses the cluster that runs it; otherwise it starts a local Ray.

    Example: ray job submit --address http://127.0.0.1:8265 -- videoar tokenize -c /shared/corpus.yaml
    """
    from cluster.config import load
    from pipeline.job.ray_session import check_config
    from pipeline.job.tokenize import tokenize

    check_config(config)
    tokenize(load(config, overrides or ()), retry=retry, repair=repair, recaption=recaption)


def submit(
    config: ConfigPath,
    overrides: Overrides = None,
    address: Annotated[
        str,
        typer.Option(help="Ray dashboard, such as http://127.0.0.1:8265 (default: cluster.ray_address, or a local Ray)."),
    ] = "",
) -> None:
    """Submit `videoar tokenize` to a Ray cluster, show its log, and exit with its exit code.

    Relative paths are those of the folder that it is called in, which the cluster's hosts must see too.

    Example: videoar submit -c configs/demo.yaml --address http://127.0.0.1:8265
    """
    from cluster.config import load
    from cluster.launch.ray_submit import run
    from pipeline.config import PipelineConfig

    resolved = load(config, overrides or ())
    output = resolved.get(PipelineConfig).output
    absolute = [] if output.is_absolute() else [f"pipeline.output={json.dumps(str(Path.cwd() / output))}"]
    command = [sys.executable, "-m", "cluster.cli.main", "tokenize", "-c", str(config.resolve()), *(overrides or ()), *absolute]
    raise typer.Exit(run(resolved, command, address=address))
