"""DOC from cluster/demo/run.py."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from cluster.config import load
from cluster.demo.inputs import DemoError, captions_of
from cluster.demo.scraper import Scraper
from cluster.launch.ray_head import RayHead
from cluster.runtime.exit_codes import STOPPED

console = Console(highlight=False, soft_wrap=True)


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
