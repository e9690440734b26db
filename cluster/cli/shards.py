"""Commands on a SHARDS folder: `videoar shards ...`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.books.tasks import Runner

shards_app = typer.Typer(help="Verify, inspect and edit token shards.", no_args_is_help=True, rich_markup_mode=None)
Shards = Annotated[Path, typer.Argument(metavar="DIR", help="SHARDS folder, as written by `videoar tokenize`.")]
Workers = Annotated[
    int,
    typer.Option(
        help="Processes: 1 is this one; 0 all cores of this machine, or the Ray cluster of RAY_ADDRESS, if there is much to do.",
        min=0,
    ),
]


@contextmanager
def tasks(work: str, folder: Path, workers: int) -> Iterator[Runner]:
    """Give what runs the tasks of a command, and say what a locked or unplanned folder lacks first."""
    from pipeline.job.task_session import task_session
    from pipeline.shards.dataset import open_folder
    from pipeline.shards.manifest import Manifest

    open_folder(folder)
    with task_session(work, Manifest(folder).groups(), workers) as run:
        yield run


@shards_app.command()
def verify(folder: Shards, workers: Workers = 0) -> None:
    """Read every byte and check that all counts agree; exit code 1, and one line per damaged shard, if not.

    If it is stopped, the same command goes on with what it has not checked yet.

    Example: videoar shards verify shards
    """
    from pipeline.maintenance.verify import verify

    with tasks("verify", folder, workers) as run:
        report = verify(folder, run)
    for problem in report.problems:
        typer.echo(problem, err=True)
    typer.echo(
        f"{folder}: {'sound' if report.sound else 'DAMAGED'}: {report.shards} shards ({len(report.damaged)} damaged), "
        f"{report.videos_used} of {report.videos} videos used, "
        f"{report.clips} clips = {report.encoded} encoded + {report.refused_clips} rejected"
    )
    if report.damaged:
        typer.echo("damaged: " + " ".join(report.damaged), err=True)
    if not report.sound:
        raise typer.Exit(1)


@shards_app.command()
def stat(
    folder: Shards,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    workers: Workers = 0,
) -> None:
    """Show statistics: samples, frames, tokens and bytes of each shape, rejections by reason.

    Example: videoar shards stat shards --json
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from pipeline.maintenance.inspect import stat

    with tasks("stat", folder, workers) as run:
        found = stat(folder, run)
    if as_json:
        typer.echo(json.dumps(found))
        return
    console = Console()
    buckets = Table(
        title=f"{folder}: {found['videos_used']} of {found['videos']} videos used, {found['fps']:g} frames per second"
    )
    columns = ("shards", "samples", "frames", "tokens", "bytes")
    for column in ("shape", *columns):
        buckets.add_column(column, justify="left" if column == "shape" else "right")
    for name, counts in found["buckets"].items():
        buckets.add_row(name, *(f"{counts[column]:,}" for column in columns))
    totals = (sum(counts[column] for counts in found["buckets"].values()) for column in columns)
    buckets.add_section()
    buckets.add_row("total", *(f"{total:,}" for total in totals))
    console.print(buckets)
    if found["refused"]:
        refused = Table(title="rejected videos and clips")
        refused.add_column("stage/reason")
        refused.add_column("count", justify="right")
        for reason, count in found["refused"].items():
            refused.add_row(reason, f"{count:,}")
        console.print(refused)
    for source in found["excluded"]:
        console.print(f"excluded: {source}", markup=False)
    typer.echo(f"tokenizer {found['tokenizer']}, {found['bits']} bits per token")
    typer.echo(f"digest {found['digest']}")


@shards_app.command()
def digest(folder: Shards, workers: Workers = 0) -> None:
    """Print one sha256 over all committed content, computed from the bytes on disk.

    Example: videoar shards digest shards
    """
    from pipeline.maintenance.verify import digest

    with tasks("digest", folder, workers) as run:
        typer.echo(digest(folder, run))


@shards_app.command()
def show(
    folder: Shards,
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer that made the shards.")],
    output: Annotated[Path, typer.Option(help="The mp4 to write.")],
    count: Annotated[int, typer.Option(help="Number of samples in the grid.", min=1)] = 9,
    bucket: Annotated[str | None, typer.Option(help="Shape, such as f017x128x128 (default: the last one).")] = None,
) -> None:
    """Decode some samples into a grid of videos.

    Example: videoar shards show shards --tokenizer runs/tokenizer --output grid.mp4
    """
    from pipeline.maintenance.inspect import show

    typer.echo(str(show(folder, tokenizer, output, count, bucket)))


@shards_app.command()
def exclude(
    folder: Shards,
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Videos as named in the table of clips; NAME/ means all videos under it."),
    ],
    workers: Workers = 0,
) -> None:
    """Exclude videos: readers skip their samples from now on; no shard is rewritten.

    Example: videoar shards exclude shards videos/private/
    """
    from pipeline.maintenance.takedown import exclude

    with tasks("exclude", folder, workers) as run:
        typer.echo(f"{folder}: {exclude(folder, sources, run)} samples are now excluded")


@shards_app.command()
def upgrade(folder: Shards) -> None:
    """Bring the tables of an older folder into the present format; shards and digest stay as they are.

    Example: videoar shards upgrade shards
    """
    from pipeline.books.upgrade import upgrade_folder

    done = upgrade_folder(folder)
    typer.echo(f"{folder}: upgraded {', '.join(done)}" if done else f"{folder}: nothing to upgrade")


@shards_app.command()
def compact(folder: Shards, workers: Workers = 0) -> None:
    """Delete the samples of excluded videos: shards that contain them are rewritten without them.

    Example: videoar shards compact shards
    """
    from pipeline.maintenance.takedown import compact

    with tasks("compact", folder, workers) as run:
        typer.echo(f"{folder}: {compact(folder, run)} samples removed")


@shards_app.command()
def rejects(
    folder: Shards,
    output: Annotated[Path, typer.Option(help="The HTML page to write.")] = Path("rejects.html"),
    each: Annotated[int, typer.Option(help="Thumbnails per reason.", min=1)] = 12,
) -> None:
    """Write a contact sheet of rejected videos and clips: thumbnails by reason.

    Example: videoar shards rejects shards --output rejects.html
    """
    from pipeline.maintenance.rejects_page import contact_sheet

    typer.echo(str(contact_sheet(folder, output, each=each)))
