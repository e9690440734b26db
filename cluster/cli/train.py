"""Commands on models: `train`, `launch`, `sample`, `eval`, `export`, `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.cli.options import ConfigPath, Overrides

if TYPE_CHECKING:
    from cluster.config import Config
    from pretrain.estimate.job_estimate import JobEstimate, Machine


def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Run one rank of a training job, as the launcher starts it; run by hand, it is a job of one rank.

    Example: videoar train -c configs/demo.yaml train.stop_after=20
    """
    from pretrain.train import main

    raise typer.Exit(main(["-c", str(config), *(overrides or ())]))


def launch(
    config: ConfigPath,
    overrides: Overrides = None,
    hostfile: Annotated[
        Path | None, typer.Option(help="File with one line `HOST slots=N` per host; they are reached by ssh.")
    ] = None,
    via: Annotated[
        Literal["local", "ssh", "slurm", "ray", "pods"] | None,
        typer.Option(
            help="local: this machine; ssh: the hosts of --hostfile (default if it is given); slurm: the nodes of this allocation, by srun; "
            "ray: the nodes of the Ray cluster of RAY_ADDRESS or of this `ray job submit`, without ssh; "
            "pods: this pod's part of a Kubernetes job (kubernetes/jobset-train.yaml)."
        ),
    ] = None,
) -> None:
    """Train a model: start one rank per device with DeepSpeed's launcher, and restart the job after a failure.

    Exit code 75 means that it stopped cleanly with a checkpoint; the same command continues from it.

    Example: videoar launch -c configs/demo.yaml train.stop_after=20

    Example: videoar launch -c my_run.yaml --hostfile hosts

    Example: RAY_ADDRESS=head:6379 videoar launch -c my_run.yaml --via ray
    """
    from cluster.config import load
    from cluster.launch.launcher import run, training_job

    resolved = load(config, overrides or ())
    if via == "pods":
        raise typer.Exit(_run_pod(resolved, overrides or (), hostfile))
    job = training_job(resolved, overrides=overrides or (), via=via, hostfile=hostfile)
    raise typer.Exit(run(resolved, job, unfinished=lambda: unfinished(resolved)))


def _run_pod(resolved: Config, overrides: Sequence[str], hostfile: Path | None) -> int:
    """Run this pod's part of a Kubernetes job, once; returns its exit code."""
    import os

    from cluster.batch.pods import Pod, run
    from cluster.launch.launcher import TRAIN, LaunchError, accelerators

    if hostfile is not None:
        raise LaunchError("--via pods takes no --hostfile: the job's file says how many pods there are; omit one of the two")
    words = (TRAIN, "-c", str(resolved.source.resolve()), *overrides)
    return run(resolved, Pod.of(os.environ), words, accelerators(), lambda: unfinished(resolved))


def unfinished(resolved: Config) -> str:
    """Return why the training run of this configuration is not done, or an empty string."""
    from cluster.config import RunConfig
    from cluster.supervise.run_state import why_unfinished
    from pretrain.data.config import CurriculumConfig
    from pretrain.engine.config import TrainConfig

    steps = [stage.steps for stage in resolved.get(CurriculumConfig).stages]
    total = sum(steps) if all(steps) else None
    return why_unfinished(resolved.get(RunConfig).dir, total, resolved.get(TrainConfig).stop_after)


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


def plan(
    config: ConfigPath,
    gpus: Annotated[int, typer.Option(help="Number of GPUs.", min=1)],
    gpu_memory: Annotated[float, typer.Option(help="Memory per GPU, in GB.", min=0.001)],
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="Type of GPU, which gives its peak FLOPs.")] = "H100",
    tflops: Annotated[float, typer.Option(help="Peak dense bf16 TFLOP/s per GPU, instead of --gpu.", min=0)] = 0.0,
    mfu: Annotated[
        float, typer.Option(help="Expected fraction of the peak (model FLOPs utilization).", min=0.001, max=1.0)
    ] = 0.4,
    link: Annotated[float, typer.Option(help="GB/s that a GPU can send to the others.", min=0.001)] = 50.0,
    text: Annotated[
        int | None, typer.Option(help="Mean text tokens per sample (default: half of model.text_length).", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Estimate the memory, FLOPs and hours of a training job; exit code 1 if it does not fit into the GPUs' memory.

    Example: videoar plan -c configs/videoar_l.yaml --gpus 64 --gpu-memory 80 --gpu H100
    """
    import json
    from dataclasses import asdict

    from cluster.config import load
    from pretrain.estimate.flops import peak_of
    from pretrain.estimate.job_estimate import Machine, estimate_job
    from tokenizer.codec import CodecError, read_json
    from tokenizer.config import TokenizerConfig

    resolved = load(config, overrides or ())
    machine = Machine(gpus, gpu_memory, tflops * 1e12 if tflops else peak_of(gpu), mfu, link)
    try:
        spec = read_json(resolved.get(TokenizerConfig).weights)[1]
    except (CodecError, OSError):
        spec = None  # not trained yet: the tokenizer section gives its shape
    made = estimate_job(resolved, machine, spec=spec, text=text)
    if as_json:
        typer.echo(json.dumps({"machine": asdict(machine), "fits": made.fits, "hours": made.hours, **asdict(made)}))
    else:
        _print_estimate(made, machine)
    if not made.fits:
        raise typer.Exit(1)


def _print_estimate(made: JobEstimate, machine: Machine) -> None:
    from rich.console import Console
    from rich.table import Table

    from pretrain.checkpoint.host_memory import SPARE
    from pretrain.estimate.job_estimate import GPUS_PER_HOST

    console = Console()
    memory = Table("memory per GPU", "GB", title=f"{made.parameters / 1e6:,.1f} M parameters on {machine.gpus} GPU(s)")
    for name, size in vars(made.memory).items():
        if name == "gathered":
            memory.add_section()  # from here on, the largest counts
        memory.add_row({"gathered": "step: gathered weights", "activations": "    + activations", "reduction": "step: reduction of gradients",
                        "update": "step: update"}.get(name, name), f"{size / 1e9:.2f}")  # fmt: skip
    memory.add_section()
    memory.add_row("total, with the largest of a step", f"{made.memory.total / 1e9:.2f} of {machine.memory_gb:g}")
    console.print(memory)
    stages = Table("", *(stage.name for stage in made.stages), title="curriculum")
    for column in stages.columns[1:]:
        column.justify = "right"
    stages.add_row("steps", *(f"{stage.steps:,}" for stage in made.stages))
    stages.add_row("samples", *(f"{stage.samples:,}" for stage in made.stages))
    stages.add_row("tokens", *(f"{stage.tokens:.3g}" for stage in made.stages))
    stages.add_row("FLOPs", *(f"{stage.flops:.3g}" for stage in made.stages))
    stages.add_row("compute hours", *(f"{stage.compute_hours:.3g}" for stage in made.stages))
    stages.add_row("communication hours", *(f"{stage.traffic_hours:.3g}" for stage in made.stages))
    stages.add_row("hours", *(f"{stage.hours:.3g}" for stage in made.stages))
    stages.add_row("padding and fill", *(f"{stage.idle:.0%}" for stage in made.stages))
    stages.add_row("packed rows", *("yes" if stage.packed else "no" for stage in made.stages))
    console.print(stages)
    if any(stage.traffic_hours > stage.compute_hours for stage in made.stages):
        typer.echo(
            "a stage is limited by communication: raise train.micro_batch or train.pack_tokens, so that the weights are gathered less often"
        )
    if not made.fits:
        typer.echo(
            "does NOT fit with a tenth of the memory to spare: use more GPUs, train.micro_batch=1, "
            "train.activation_checkpointing=full, or a lower deepspeed.zero_optimization.stage3_max_live_parameters"
        )
    fitting = next((each for each in made.lower if each.fits), None)
    if fitting is not None:
        typer.echo(
            f"ZeRO-{fitting.stage} would fit ({fitting.memory / 1e9:.1f} of {machine.memory_gb:g} GB) and save the gathering of weights "
            f"in each step: deepspeed.zero_optimization.stage={fitting.stage} in a new run"
        )
    elif made.lower:
        found = ", ".join(f"ZeRO-{each.stage} {each.memory / 1e9:.1f} GB" for each in made.lower)
        typer.echo(f"lower ZeRO stages would not fit: {found} of {machine.memory_gb:g} GB")
    typer.echo(
        f"host memory for checkpoints: {made.checkpoint / 1e9:.1f} GB per host of {min(machine.gpus, GPUS_PER_HOST)} GPU(s), kept from the "
        f"first one on; with less than {SPARE:g} times that free, they go through files and training waits for them"
    )
    typer.echo(f"{made.hours:,.1f} hours = {made.hours * machine.gpus:,.0f} GPU hours at {machine.mfu:.0%} of the peak")
