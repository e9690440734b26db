"""`videoar plan`: memory, tokens, FLOPs and hours before a machine is rented. Called by: `cluster/cli/main.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.options import ConfigPath, Overrides


def plan(
    config: ConfigPath,
    gpus: Annotated[int, typer.Option(help="GPUs in all.", min=1)],
    gpu_memory: Annotated[float, typer.Option(help="GB a GPU.", min=0.001)],
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU, for its peak.")] = "H100",
    tflops: Annotated[float, typer.Option(help="Dense bf16 TFLOPs a second of a GPU, instead of --gpu.", min=0)] = 0.0,
    mfu: Annotated[float, typer.Option(help="Share of the peak that is expected.", min=0.001, max=1.0)] = 0.4,
    link: Annotated[float, typer.Option(help="GB a second that a GPU can send to others.", min=0.001)] = 50.0,
    text: Annotated[int | None, typer.Option(help="Text tokens a sample (default: model.text_length).", min=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Work out what a training job needs; exit code 1 when it does not fit into the GPUs' memory.

    Example: videoar plan -c configs/videoar_l.yaml --gpus 64 --gpu-memory 80 --gpu H100
    """
    import json
    from dataclasses import asdict

    from cluster.config import load
    from pretrain.estimate.hardware import Machine, peak_of
    from pretrain.estimate.job_estimate import make
    from tokenizer.codec import CodecError, read_json
    from tokenizer.config import TokenizerConfig

    resolved = load(config, overrides or ())
    machine = Machine(gpus, gpu_memory, tflops * 1e12 if tflops else peak_of(gpu), mfu, link)
    try:
        spec = read_json(resolved.get(TokenizerConfig).weights)[1]
    except (CodecError, OSError):
        spec = None  # not trained yet: the tokenizer section says its shape
    made = make(resolved, machine, spec=spec, text=text)
    if as_json:
        typer.echo(json.dumps({"machine": asdict(machine), "fits": made.fits, "hours": made.hours, **asdict(made)}))
    else:
        _print(made, machine)
    if not made.fits:
        raise typer.Exit(1)


def _print(made: object, machine: object) -> None:
    from rich.console import Console
    from rich.table import Table

    from pretrain.estimate.hardware import Machine
    from pretrain.estimate.job_estimate import Plan

    assert isinstance(made, Plan) and isinstance(machine, Machine)
    console = Console()
    memory = Table("a GPU holds", "GB", title=f"{made.parameters / 1e6:,.1f} M parameters on {machine.gpus} GPU(s)")
    for name, size in vars(made.memory).items():
        memory.add_row(name, f"{size / 1e9:.2f}")
    memory.add_section()
    memory.add_row("all", f"{made.memory.total / 1e9:.2f} of {machine.memory_gb:g}")
    console.print(memory)
    stages = Table("", *(stage.name for stage in made.stages), title="curriculum")
    for column in stages.columns[1:]:
        column.justify = "right"
    stages.add_row("steps", *(f"{stage.steps:,}" for stage in made.stages))
    stages.add_row("samples", *(f"{stage.samples:,}" for stage in made.stages))
    stages.add_row("tokens", *(f"{stage.tokens:.3g}" for stage in made.stages))
    stages.add_row("FLOPs", *(f"{stage.flops:.3g}" for stage in made.stages))
    stages.add_row("hours of computing", *(f"{stage.compute_hours:.3g}" for stage in made.stages))
    stages.add_row("hours of traffic", *(f"{stage.traffic_hours:.3g}" for stage in made.stages))
    stages.add_row("hours", *(f"{stage.hours:.3g}" for stage in made.stages))
    stages.add_row("idle slots", *(f"{stage.idle:.0%}" for stage in made.stages))
    console.print(stages)
    if any(stage.traffic_hours > stage.compute_hours for stage in made.stages):
        typer.echo("a stage waits for traffic: raise train.micro_batch, so that fewer micro-batches move the weights")
    if not made.fits:
        typer.echo(
            "does NOT fit with a tenth to spare: more GPUs, train.micro_batch=1, train.activation_checkpointing=full, "
            "or a lower deepspeed.zero_optimization.stage3_max_live_parameters"
        )
    typer.echo(f"{made.hours:,.1f} hours = {made.hours * machine.gpus:,.0f} GPU hours at {machine.mfu:.0%} of the peak")
