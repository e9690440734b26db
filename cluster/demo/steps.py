"""The steps of the demo, each one or more `videoar` commands that are printed, run and recorded in OUT/commands.jsonl."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from cluster.demo.budget import (
    LEAST,
    STARTS_AFTER,
    TIMED,
    TOKENIZER_SHARE,
    Budget,
    Stopwatch,
    clear_timing,
    fit,
    lines_of,
    per_step,
    stage_seconds,
)
from cluster.demo.inputs import DemoError, captions_of
from cluster.launch.ray_head import RayHead
from cluster.runtime.job_protocol import STOPPED
from cluster.tables import table_list
from cluster.tables.table_folder import TableFolder

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Recipe:
    """What the steps need to know of the demo's configuration."""

    stage_steps: tuple[int, ...]
    """Steps of each stage of the curriculum."""
    captions: str | None
    """CSV of captions, if the videos have one."""
    tokenizer_steps: int = 0
    pixels: Mapping[str, float] = field(default_factory=dict)
    """Pixels of a training step of the tokenizer, by shape."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Share of the tokenizer's steps that have each shape."""


class DemoSteps:
    """The steps of the demo in one folder."""

    def __init__(self, out: Path, config: Path, recipe: Recipe) -> None:
        self.out, self.config, self.recipe = out, config, recipe
        self.log = out / "commands.jsonl"
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        # This Python's commands come first, so that what is printed is what runs.
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
                f"exit code {STOPPED}: stopped with a checkpoint, as requested; the launcher reports every code but 0 as an error"
            )
        if code not in accept:
            raise DemoError(
                f"the step `{title}` failed with exit code {code}; fix the error above and run the same command again"
            )
        return code

    def choose_tokenizer_steps(self, budget: Budget, watch: Stopwatch) -> Budget:
        """Time the tokenizer's first steps and choose how many fit; a recipe of few steps, or no limit, is taken as it is."""
        wanted = self.recipe.tokenizer_steps
        if not budget.minutes or wanted <= 2 * TIMED:
            return replace(budget, tokenizer_steps=wanted)
        folder = clear_timing(self.out)
        self.command(
            f"1/6 time {TIMED} steps of the tokenizer's training",
            *(
                "videoar",
                "tokenizer",
                "train",
                "-c",
                str(self.config),
                f"run.dir={folder}",
                f"tokenizer.weights={folder / 'tokenizer'}",
            ),
            *(f"tokenizer.training.steps={TIMED}", "tokenizer.training.log_every=1"),
        )
        seconds = per_step(lines_of(folder / "tokenizer-metrics.jsonl"), self.recipe.pixels, self.recipe.shares)
        left = 60 * budget.minutes * TOKENIZER_SHARE - watch.seconds
        (steps,) = fit(left, [seconds], [wanted], LEAST["tokenizer"])
        console.print(
            f"{seconds:.3f} s per step: [bold]{steps} of the recipe's {wanted} tokenizer steps[/bold], about {steps * seconds / 60:.1f} of "
            f"{budget.minutes:g} minutes"
        )
        return replace(budget, tokenizer_steps=steps, tokenizer_seconds=seconds)

    def choose_stage_steps(self, budget: Budget, watch: Stopwatch) -> Budget:
        """Time the first steps of each stage of the transformer's training and choose how many fit into what is left."""
        wanted = self.recipe.stage_steps
        if not budget.minutes or max(wanted) <= 2 * TIMED:
            return replace(budget, stage_steps=wanted)
        folder, began = clear_timing(self.out), time.monotonic()
        steps = (f"curriculum.stages.{number}.steps={min(each, TIMED // 2)}" for number, each in enumerate(wanted))
        self.command(
            "3/6 time the first steps of each stage of training",
            *("videoar", "launch", "-c", str(self.config), f"run.dir={folder}", "train.samples=0", *steps),
        )
        lines = lines_of(folder / "metrics.jsonl")
        seconds = stage_seconds(lines, len(wanted))
        start = time.monotonic() - began - sum(line["seconds"]["total"] for line in lines)
        left = 60 * budget.minutes - watch.seconds - STARTS_AFTER * start
        chosen = fit(left, seconds, wanted, LEAST["stages"])
        took = sum(each * count for each, count in zip(seconds, chosen, strict=True))
        console.print(
            f"{' and '.join(f'{each:.2f}' for each in seconds)} s per step: [bold]{' + '.join(map(str, chosen))} of the recipe's "
            f"{' + '.join(map(str, wanted))} steps[/bold], about {took / 60:.1f} of the {max(0.0, left) / 60:.1f} minutes left"
        )
        return replace(budget, stage_steps=chosen, stage_seconds=seconds)

    def tokenizer(self) -> None:
        """Train the tokenizer."""
        self.command("1/6 train the 3D multi-scale tokenizer", "videoar", "tokenizer", "train", "-c", str(self.config))

    def encoded(self) -> set[str]:
        """Return the source videos that gave at least one sample."""
        tables = TableFolder.open(self.out / "shards" / "index").tables(["source"])
        found = {str(source) for table in tables for source in table.column("source").to_pylist()}
        if not found:
            raise DemoError(
                f"{self.out / 'shards'}: no video gave a clip; see {self.out / 'shards' / 'rejects'}, or use longer videos"
            )
        return found

    def reconstructions(self, clips: Sequence[Path]) -> None:
        """Write videos of originals beside their reconstructions."""
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
        """Start Ray, submit the tokenization job, stop Ray; verify the shards."""
        shards = self.out / "shards"
        if not table_list.exists(shards / "index"):
            console.print("\n[bold cyan]== 2/6 start a local Ray[/bold cyan]")
            with RayHead() as head:
                self.command(
                    "2/6 tokenize the videos into shards, as a Ray job",
                    *("ray", "job", "submit", "--address", head.dashboard, "--"),
                    *("videoar", "tokenize", "-c", str(self.config.resolve())),
                    extra=head.environment,
                )
        self.command("verify the shards", "videoar", "shards", "verify", str(shards))
        self.command("show what the shards contain", "videoar", "shards", "stat", str(shards))

    def train(self, first_stage_steps: int) -> None:
        """Train through both stages. The first start is stopped on purpose; the second resumes from its checkpoint."""
        stop = first_stage_steps // 2 + 1
        launch = ("videoar", "launch", "-c", str(self.config))
        with MetricsScraper(self.out / "metrics-address", self.out / "metrics-scrape.txt"):
            if not any((self.out / "checkpoints").glob("step-*/DONE")):
                self.command(
                    f"3/6 train VideoAR on two ranks under ZeRO-3; stopped on purpose after step {stop}",
                    *(*launch, f"train.stop_after={stop}"),
                    accept=(0, STOPPED),
                )
            self.command("4/6 the same command again: it resumes from the checkpoint", *launch)

    def samples(self, clips: Sequence[Path]) -> None:
        """Generate videos from text, and continue a real clip."""
        folder = self.out / "samples"
        captions = captions_of(self.recipe.captions, clips)
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


class MetricsScraper:
    """Context manager that scrapes a job's Prometheus endpoint, as a Prometheus server would, and keeps the last answer in a file."""

    def __init__(self, address_file: Path, output: Path, every: float = 0.2) -> None:
        self.address_file, self.output, self.every = address_file, output, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> MetricsScraper:
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
                continue  # not serving yet, or between two runs: try again
            if "videoar_train_step " in text:
                self.output.write_text(text)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
