"""Commands around a job: `preflight` before it, `report`, `dashboards`, `compare` after it, and `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.cli.options import ConfigPath, Overrides
from cluster.cli.train import unfinished

if TYPE_CHECKING:
    from cluster.config import Config
    from cluster.launch.preflight import JobInputs, Probes

BENCHMARKS = {
    "train": "train_model.py",
    "load": "load.py",
    "tokenize": "bench_tokenize.py",
    "codec": "bench_codec.py",
    "sample": "sample_model.py",
    "checkpoint": "checkpoint.py",
    "gpu": "bench_gpu.py",
}
"""Name of a benchmark -> its script in benchmarks/."""


def _show_recipes(show: bool) -> None:
    from cluster.batch import recipes

    if show:
        width = max(map(len, recipes.recipes()))
        for name, text in recipes.recipes().items():
            typer.echo(f"{name:<{width}}  {text}")
        raise typer.Exit


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write into; it is made if it is not there.")],
    recipe: Annotated[str, typer.Option(help="Name of the recipe; --list shows them.")] = "train_cpu",
    show: Annotated[
        bool, typer.Option("--list", help="Show the recipes and write nothing.", callback=_show_recipes, is_eager=True)
    ] = False,
) -> None:
    """Copy a recipe, and the templates for Slurm and Kubernetes, into FOLDER to start from. Nothing is overwritten.

    Example: videoar init my-run --recipe videoar_l
    """
    from cluster.batch import recipes

    written, commands = recipes.copy(recipe, folder)
    for path in written:
        typer.echo(f"wrote {path}")
    typer.echo("\nEdit it, then:")
    for line in (f"videoar config show -c {written[0]}    (all keys, defaults filled in)", *commands):
        typer.echo(f"  {line}")


def compare(
    first: Annotated[Path, typer.Argument(help="Run folder.")],
    second: Annotated[Path, typer.Argument(help="Another run folder.")],
) -> None:
    """Show how two runs differ: settings, code, data, and the losses of the steps that both have.

    Example: videoar compare runs/demo runs/no-correction
    """
    from pretrain.runs.compare import compare, lines

    for line in lines(compare(first, second), first, second):
        typer.echo(line)


def bench(
    context: typer.Context,
    name: Annotated[
        Literal["train", "load", "tokenize", "codec", "sample", "checkpoint", "gpu"], typer.Argument(help="What to measure.")
    ],
) -> None:
    """Measure a part against the plain alternative and the physical limit, all in one run; NAME's own options follow it.

    The last line is one JSON object. `bench tokenize --codec-only` is `bench codec`.

    Example: videoar bench train --rounds 1
    """
    import subprocess
    import sys

    from cluster.runtime.source_tree import source_root

    if name == "tokenize" and "--codec-only" in context.args:
        name, context.args = "codec", [word for word in context.args if word != "--codec-only"]
    script = source_root() / "benchmarks" / BENCHMARKS[name]
    if not script.is_file():
        raise FileNotFoundError(2, "no benchmarks here; run it from a clone of the repository", str(script))
    raise typer.Exit(subprocess.run([sys.executable, str(script), *context.args], check=False).returncode)


def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Write report.html of a run: curves, throughput, reconstructions, samples.

    Example: videoar report runs/demo
    """
    from cluster.monitoring.report import write

    typer.echo(str(write(run)))


def monitor(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders, or folders of runs.", show_default="runs")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; any but this machine's own asks for a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8300,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token; or VIDEOAR_MONITOR_TOKEN has it, or one is made up and printed.")
    ] = None,
    prometheus: Annotated[str, typer.Option(help="Address of a Prometheus, for runs whose folders are not here.")] = "",
) -> None:
    """Serve a web page over live and finished runs: curves, ranks, samples, shards, checkpoints, logs. Ctrl-C ends it.

    Example: videoar monitor runs --prometheus http://127.0.0.1:9090
    """
    from urllib.parse import quote

    from cluster.monitor.access import Access, token_for
    from cluster.monitor.library import Library
    from cluster.monitor.server import serve

    token = token_for(host, token_file)
    library = Library(runs or ([] if prometheus else [Path("runs")]), prometheus, _rejects_page)

    def ready(bound: str, number: int) -> None:
        shown = f"[{bound}]" if ":" in bound else bound
        typer.echo(f"http://{shown}:{number}/" + (f"?token={quote(token)}" if token else ""))
        if token:
            typer.echo(
                "anyone who can read the line above can see the runs; it is not encrypted: prefer ssh -L on open networks"
            )

    serve(library, host, port, Access(token), ready)


def _rejects_page(folder: Path) -> str:
    import tempfile

    from pipeline.maintenance.rejects_page import contact_sheet

    with tempfile.TemporaryDirectory() as place:
        return contact_sheet(folder, Path(place) / "rejects.html", each=8).read_text()


def preflight(
    config: ConfigPath,
    overrides: Overrides = None,
    job: Annotated[Literal["tokenize", "train"], typer.Option("--for", help="The job to check for.")] = "train",
    hostfile: Annotated[Path | None, typer.Option(help="File with one line `HOST slots=N` per host.")] = None,
    via: Annotated[
        Literal["ssh", "slurm", "ray"] | None,
        typer.Option(help="slurm: also ask the nodes of this allocation, by srun; ray: those of a Ray cluster, through it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Check for everything that would stop a job before it starts; exit code 1 if something would.

    Example: videoar preflight -c configs/demo.yaml --for tokenize

    Example: videoar preflight -c configs/demo.yaml --hostfile hosts --json

    Example: RAY_ADDRESS=head:6379 videoar preflight -c configs/demo.yaml --via ray
    """
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cluster.config import load
    from cluster.launch.launcher import LaunchError
    from cluster.launch.preflight import check

    if via is not None and (via == "ssh") != (hostfile is not None):
        raise LaunchError("--via ssh needs --hostfile FILE, --via slurm and --via ray take none: they know their nodes")
    resolved = load(config, overrides or ())
    findings = check(resolved, job_inputs(resolved), _probes(resolved), job, hostfile, via=via)
    passed = all(each.ok for each in findings)
    if as_json:
        typer.echo(json.dumps({"job": job, "ok": passed, "findings": [asdict(each) for each in findings]}))
    else:
        table = Table("check", "", "found", "what to do", title=f"preflight for {job}")
        for each in findings:
            mark = "[green]ok[/green]" if each.ok else "[red]FAIL[/red]"
            table.add_row(escape(each.check), mark, escape(each.found), "" if each.ok else escape(each.fix))
        Console().print(table)
    if not passed:
        raise typer.Exit(1)


def job_inputs(resolved: Config) -> JobInputs:
    """Return what a job with this configuration reads and writes."""
    from cluster.launch.preflight import JobInputs, StageInputs
    from pipeline.config import PipelineConfig
    from pretrain.data.config import CurriculumConfig
    from pretrain.engine.config import TrainConfig
    from tokenizer.config import TokenizerConfig

    pipeline, curriculum = resolved.get(PipelineConfig), resolved.get(CurriculumConfig)
    return JobInputs(
        tokenizer=resolved.get(TokenizerConfig).weights,
        output=pipeline.output,
        min_free_gb=pipeline.min_free_gb,
        shards=curriculum.shards or (pipeline.output,),
        stages=tuple(StageInputs(stage.name, tuple(mix.bucket for mix in stage.mix)) for stage in curriculum.stages),
        makes_samples=resolved.get(TrainConfig).sample_every > 0,
    )


def _probes(resolved: Config) -> Probes:
    from cluster.launch.preflight import Probes, ShardFacts
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

    return Probes(
        tokenizer=lambda folder: read_json(folder)[1].digest,
        shards=shards,
        videos=lambda: len(find(resolved.get(CorpusConfig))),
        unfinished=lambda: unfinished(resolved),
    )


def dashboards(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files.")],
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders of the jobs to scrape.")] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="A host with node_exporter and DCGM's exporter; repeatable."),
    ] = None,
    page_url: Annotated[
        str, typer.Option(metavar="URL", help="Webhook for alerts that wake someone.")
    ] = "http://127.0.0.1:9095/",
    ticket_url: Annotated[str, typer.Option(metavar="URL", help="Webhook for the other alerts.")] = "http://127.0.0.1:9095/",
) -> None:
    """Write files for Prometheus (scraping, rules, alerts), Alertmanager and Grafana.

    Jobs that are started with metrics.targets=DIR/prometheus/targets are scraped without naming them here.

    Example: videoar dashboards monitoring runs/demo

    Example: videoar dashboards monitoring --host node1 --host node2 --page-url https://pager.example/hook
    """
    from cluster.monitoring.dashboards import write

    for path in write(folder, runs or (), hosts or (), page_url=page_url, ticket_url=ticket_url):
        typer.echo(str(path))
    typer.echo(f"jobs: videoar launch ... metrics.targets={(folder / 'prometheus' / 'targets').resolve()}")
    typer.echo(f"start: prometheus-alertmanager --config.file={folder / 'prometheus' / 'alertmanager.yml'}")
    typer.echo(f"start: prometheus --config.file={folder / 'prometheus' / 'prometheus.yml'}")
