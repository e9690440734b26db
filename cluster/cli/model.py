"""Commands on trained models: `sample`, `eval`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli.options import ConfigPath, Overrides


def sample(
    config: ConfigPath,
    output: Annotated[Path, typer.Option(help="Folder for the videos, sheet.png and samples.json.")],
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text of one video; repeat the option for more videos.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt a line, instead of or after --prompt.")
    ] = None,
    prefix: Annotated[Path | None, typer.Option(help="Image or video that every sample continues.")] = None,
    prefix_frames: Annotated[int, typer.Option(help="Frames to take from --prefix; 0: half a clip.", min=0)] = 0,
    bucket: Annotated[
        str | None, typer.Option(help="Shape, such as f017x128x128 (default: the longest that was trained on last).")
    ] = None,
    extend: Annotated[int, typer.Option(help="How many times to extend the clip.", min=0)] = 0,
    weights: Annotated[Path | None, typer.Option(help="Run folder, checkpoint or exported model (default: run.dir).")] = None,
    batch: Annotated[int, typer.Option(help="Videos to generate at the same time.", min=1)] = 4,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one.")] = "auto",
) -> None:
    """Generate videos from text with a trained model, or continue an image or a video.

    Example: videoar sample -c configs/demo.yaml --prompt "a cyclist rides by" --output samples
    """
    from cluster.config import load
    from cluster.launch.launcher import accelerators
    from pipeline.config import PipelineConfig
    from pretrain.sampling.generate import run
    from pretrain.sampling.request import SampleRequest, read_prompts

    resolved = load(config, overrides or ())
    given = list(prompt or ([] if prompts else [""]))
    texts, lines = read_prompts(prompts) if prompts else ([], [])
    places = [f"--prompt {number}" for number in range(1, len(given) + 1)]
    files = run(
        resolved,
        SampleRequest([*given, *texts], prefix, prefix_frames, extend, batch, [*places, *lines]),
        output,
        bucket=bucket,
        fallback=resolved.get(PipelineConfig).buckets[0].name,
        weights=weights,
        device=("cuda" if accelerators() else "cpu") if device == "auto" else device,
    )
    for file in files:
        typer.echo(str(file))


def evaluate(
    config: ConfigPath,
    output: Annotated[
        Path, typer.Option(help="Folder for scores.json, plots, and the videos that are scored; run again, it goes on.")
    ],
    overrides: Overrides = None,
    clips: Annotated[int, typer.Option(help="Held-out clips to score against, and samples per seed.", min=2)] = 64,
    seeds: Annotated[int, typer.Option(help="Seeds: sample.seed and those after it.", min=1)] = 3,
    known: Annotated[int, typer.Option(help="Frames that predictions are given; 0: half a clip.", min=0)] = 0,
    length: Annotated[int, typer.Option(help="Length of the extended videos, in clips; 1: none.", min=1)] = 4,
    drift_clips: Annotated[int, typer.Option(help="Videos to extend.", min=2)] = 16,
    vbench: Annotated[
        Path | None,
        typer.Option(help="Instead: make samples for VBench, of its VBench_full_info.json or a file with one prompt a line."),
    ] = None,
    vbench_samples: Annotated[int, typer.Option(help="Videos of each prompt of --vbench.", min=1)] = 5,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Only make videos: share I of N, counted from 0, of the work of N processes.")
    ] = "0/1",
    bucket: Annotated[
        str | None, typer.Option(help="Shape, such as f017x128x128 (default: the longest that was trained on last).")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Run folder, checkpoint or exported model (default: run.dir).")] = None,
    batch: Annotated[int, typer.Option(help="Videos to generate at the same time.", min=1)] = 4,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one.")] = "auto",
) -> None:
    """Score a trained model on held-out clips (curriculum.validation): FVD, KVD, LPIPS, PSNR, SSIM, bit loss, drift.

    The last line is one JSON object; scores.json holds all scores with their confidence intervals.

    Example: videoar eval -c configs/demo.yaml --output scores curriculum.validation=[held-out-shards]

    Example: videoar eval -c configs/demo.yaml --output scores --vbench VBench_full_info.json
    """
    from cluster.config import load
    from cluster.launch.launcher import accelerators
    from pipeline.config import PipelineConfig
    from pipeline.corpus.fetch import opened
    from pretrain.evaluation import vbench as layout
    from pretrain.evaluation.evaluate import EvalRequest
    from pretrain.evaluation.evaluate import evaluate as score
    from pretrain.evaluation.generation import Part
    from pretrain.sampling.generate import VideoGenerator

    share = Part.parse(part)
    wanted = layout.read(vbench, vbench_samples) if vbench else []
    resolved = load(config, overrides or ())
    chosen = ("cuda" if accelerators() else "cpu") if device == "auto" else device
    fallback = resolved.get(PipelineConfig).buckets[0].name
    generator = VideoGenerator.load(resolved, bucket=bucket, fallback=fallback, weights=weights, device=chosen)
    if vbench:
        files = layout.make(generator, wanted, output, batch=batch)
        typer.echo(f"{output / 'vbench'}: {len(files)} videos; give VBench this folder as its videos_path")
        return
    request = EvalRequest(clips, seeds, known, length, drift_clips, batch)
    score(resolved, generator, output, request, video=opened, part=share)


def export(
    source: Annotated[Path, typer.Argument(help="Run folder (its newest complete checkpoint) or checkpoint folder.")],
    output: Annotated[Path, typer.Argument(help="Folder for model.json and model.safetensors.")],
    average: Annotated[
        bool | None, typer.Option(help="Export the moving average of the weights (default: if the run keeps one).")
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Data type of the weights; auto: the one that the run was trained in."),
    ] = "auto",
) -> None:
    """Gather the sharded weights of a checkpoint into one safetensors file.

    Example: videoar export runs/demo model --dtype bfloat16
    """
    from pretrain.checkpoint.export import export

    made = export(source, output, average=average, dtype=dtype)
    average_note = f", moving average ({made.start_share:.1%} of it is the random start)" if made.averaged else ""
    typer.echo(f"{output}: step {made.step}, {made.dtype}{average_note}")
    if made.averaged and made.start_share > 0.01:
        typer.echo("too much of the average is the start for weights to be used: train longer, or export with --no-average")
