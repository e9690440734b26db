"""The command line `videoar`: every command, in the order of `videoar --help`.

In:  sys.argv.
Out: the exit code: 0 done, 2 a wrong command line or configuration, 75 stopped cleanly, 1 any other failure.

Each command calls one function, which is imported when the command runs. Errors meant for the user are one line on stderr;
VIDEOAR_TRACEBACK=1 adds their traceback. Any other error is a bug and is shown with its traceback.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import data, datasets, shards, tools, train
from cluster.cli.options import ConfigPath, Overrides
from cluster.runtime.errors import ErrorReport

if TYPE_CHECKING:
    from cluster.config import Config
    from cluster.demo.steps import Recipe

app = typer.Typer(
    name="videoar",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="The configuration.", no_args_is_help=True, rich_markup_mode=None)


def version() -> str:
    """Return the version, the commit and what is underneath, on three lines."""
    import importlib.metadata
    import platform

    import torch

    from cluster.config.precision import hardware, settle
    from cluster.runtime.source_tree import code_digest
    from pretrain.runs.provenance import commit

    here = hardware("cuda" if torch.cuda.is_available() else "cpu")
    code = f"commit {commit()[:12]}" if commit() else f"no clone, code {code_digest()[:12]}"
    return "\n".join((
        f"videoar {importlib.metadata.version('videoar-pretrain')} ({code})",
        f"Python {platform.python_version()}, torch {torch.__version__}",
        f"{here.name}; {settle('dtype', 'auto', [here]).line}",
    ))  # fmt: skip


def _show_version(show: bool) -> None:
    if show:
        typer.echo(version())
        raise typer.Exit


@app.callback()
def options(
    show: Annotated[
        bool,
        typer.Option(
            "--version", help="Show version, commit, Python, torch, device and dtype.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Pre-training of VideoAR: videos to tokens, tokens to a model, on one machine or a cluster."""


def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("runs/demo"),
    videos: Annotated[Path | None, typer.Option(help="Folder of videos to use instead of the default clips.")] = None,
    minutes: Annotated[
        float, typer.Option(help="Time for the whole; the steps are chosen to fit. 0: all steps of the recipe.", min=0)
    ] = 8.0,
) -> None:
    """Run the whole path from videos to samples on real video, on the CPU.

    Example: videoar demo --out runs/demo
    """
    from cluster.demo.run import run

    run(out.resolve(), None if videos is None else videos.resolve(), overrides or (), recipe=_recipe, minutes=minutes)


def _recipe(resolved: Config) -> Recipe:
    from cluster.demo.steps import Recipe
    from pipeline.config import CorpusConfig
    from pretrain.data.config import CurriculumConfig
    from tokenizer.config import TokenizerConfig

    training, stages = resolved.get(TokenizerConfig).training, resolved.get(CurriculumConfig).stages
    shapes = {f"f{each.frames:03d}x{each.height}x{each.width}": each for each in training.buckets}
    weight = sum(each.weight for each in training.buckets)
    return Recipe(
        stage_steps=tuple(stage.steps for stage in stages),
        captions=resolved.get(CorpusConfig).captions,
        tokenizer_steps=training.steps,
        pixels={name: float(each.batch * each.frames * each.height * each.width) for name, each in shapes.items()},
        shares={name: each.weight / weight for name, each in shapes.items()},
    )


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the resolved configuration with all defaults filled in.

    Example: videoar config show -c configs/demo.yaml train.micro_batch=2
    """
    from cluster.config import load

    typer.echo(load(config, overrides or ()).yaml(), nl=False)


app.command()(demo)
app.command()(tools.init)
app.command()(data.tokenize)
app.command()(data.submit)
app.command()(tools.compare)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(tools.bench)
app.command()(train.train)
app.command()(train.launch)
app.command()(train.sample)
app.command("eval")(train.evaluate)
app.command()(train.export)
app.command()(train.plan)
app.command()(tools.report)
app.command()(tools.monitor)
app.command()(tools.preflight)
app.command()(tools.dashboards)
app.add_typer(config_app, name="config")
app.add_typer(data.tokenizer_app, name="tokenizer")
app.add_typer(datasets.data_app, name="data")
app.add_typer(shards.shards_app, name="shards")


def main() -> None:
    """Run the command line and exit with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    with ErrorReport("videoar: ") as report:
        try:
            app(arguments, prog_name="videoar")
        except SystemExit as ended:  # how Typer ends a command, a usage error and an interrupt
            return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    return report.code


if __name__ == "__main__":
    main()
