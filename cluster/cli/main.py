"""The command line: `videoar`. Every command calls one function, imported when the command runs.

In:  sys.argv. Out: exit code: 0 done, 2 a wrong command line or configuration, 75 stopped cleanly, 1 any other failure.
Called by: the `videoar` script and `python -m cluster.cli.main`.

Errors of ours are one line on stderr; VIDEOAR_TRACEBACK=1 shows where they come from. An error that is
not ours is a bug and always comes with its traceback. The commands on data, shards and models are in
`cli_data.py`, `cli_shards.py`, `cli_plan.py`
and `cli_train.py`.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli import data, plan, shards, tools, train
from cluster.cli.errors import exit_code, is_ours, one_line
from cluster.cli.options import ConfigPath, Overrides

_HELP = "Pre-training of VideoAR: videos to tokens, tokens to a model, on one machine or a cluster."

app = typer.Typer(
    name="videoar",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="The configuration.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("runs/demo"),
    videos: Annotated[Path | None, typer.Option(help="Folder of videos instead of the default clips.")] = None,
) -> None:
    """Run the whole path on real video, on the CPU.

    Example: videoar demo --out runs/demo
    """
    from cluster.demo.run import run

    run(out.resolve(), None if videos is None else videos.resolve(), overrides or ())


app.add_typer(config_app, name="config")


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the resolved configuration, defaults filled in.

    Example: videoar config show -c configs/demo.yaml train.micro_batch=2
    """
    from cluster.config import load

    typer.echo(load(config, overrides or ()).yaml(), nl=False)


data.add_to(app)
app.add_typer(shards.shards_app, name="shards")
tools.add_to(app)
train.add_to(app)
app.command()(plan.plan)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Write report.html of a run: curves, throughput, reconstructions, samples.

    Example: videoar report runs/demo
    """
    from cluster.monitoring.report import write

    typer.echo(str(write(run)))


@app.command()
def preflight(
    config: ConfigPath,
    overrides: Overrides = None,
    job: Annotated[Literal["tokenize", "train"], typer.Option("--for", help="The job that is to start.")] = "train",
    hostfile: Annotated[Path | None, typer.Option(help="Hosts, one line `HOST slots=N` each.")] = None,
) -> None:
    """Look for what would stop a job before it starts; exit code 1 when something would.

    Example: videoar preflight -c configs/demo.yaml --for tokenize
    """
    from rich.console import Console
    from rich.table import Table

    from cluster.config import load
    from cluster.launch.preflight import Lookers, ShardFacts, check
    from pipeline.config import CorpusConfig
    from pipeline.corpus.listing import find
    from pipeline.shards.dataset import ShardDataset
    from pretrain.data.config import CurriculumConfig
    from tokenizer.codec import read_json

    def shards(folder: Path | str) -> ShardFacts:
        data = resolved.get(CurriculumConfig)
        dataset = ShardDataset.open(folder, data.cache, int(data.cache_gb * 1e9))
        samples = {bucket.name: dataset.rows(bucket).num_rows for bucket in dataset.buckets()}
        return ShardFacts(dataset.spec.digest, samples)

    look = Lookers(
        tokenizer=lambda folder: read_json(folder)[1].digest,
        shards=shards,
        videos=lambda resolved: len(list(find(resolved.get(CorpusConfig)))),
    )
    resolved = load(config, overrides or ())
    rows = check(resolved, look, job, hostfile)
    table = Table("check", "", "found", "what to do", title=f"preflight for {job}")
    for row in rows:
        table.add_row(row.what, "[green]ok[/green]" if row.ok else "[red]FAIL[/red]", row.found, "" if row.ok else row.mend)
    Console().print(table)
    if not all(row.ok for row in rows):
        raise typer.Exit(1)


@app.command()
def dashboards(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files.")],
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders whose jobs are scraped.")] = None,
) -> None:
    """Write files for Prometheus (scraping, alerts) and Grafana (training, tokenization).

    Example: videoar dashboards monitoring runs/demo
    """
    from cluster.monitoring.dashboards import write

    for path in write(folder, runs or ()):
        typer.echo(str(path))
    typer.echo(f"start: prometheus --config.file={folder / 'prometheus' / 'prometheus.yml'}")


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        app(arguments, prog_name="videoar")
    except SystemExit as ended:  # how Typer ends a command, a usage error and an interrupt
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("VIDEOAR_TRACEBACK") == "1" or not is_ours(error):
            traceback.print_exception(error)
        else:
            print(f"videoar: {one_line(error)}", file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    main()
