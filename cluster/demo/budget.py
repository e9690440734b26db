"""How many steps the demo takes: as many of the recipe's as fit into the minutes that the user gives.

In:  the recipe's steps, and the times of the first steps, from a short run of each training in OUT/timing.
Out: the chosen steps, recorded in OUT/budget.json. A demo that is run again takes them from there, whatever the machine.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.runtime.atomic_files import read_json, write_text

TIMED = 16
"""Steps of a timing run. A recipe with no more than twice as many is not timed."""
LEFT_OUT = 4
"""First steps of a timing run that do not count: they load, and allocate memory."""
LEAST = {"tokenizer": 200, "stages": 20}
"""Steps below which nothing is learned: the tokenizer's, and those of each stage of the transformer."""
TOKENIZER_SHARE = 0.42
"""Share of the minutes that the tokenizer's training may take, timing included."""
STARTS_AFTER = 3
"""Starts of a command that follow the transformer's timing, in units of the timing run's own start: two of training, and
shorter ones of sampling and the report."""


@dataclass(frozen=True)
class Budget:
    """What was chosen, and from what. All steps are 0 until they are chosen."""

    minutes: float
    """0: no limit, the recipe's steps."""
    tokenizer_steps: int = 0
    stage_steps: tuple[int, ...] = ()
    tokenizer_seconds: float = 0.0
    """Measured seconds per step of the tokenizer, weighted by the recipe's shapes; 0 where nothing was timed."""
    stage_seconds: tuple[float, ...] = ()
    """Measured seconds per step of each stage."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The recipe's own steps: `tokenizer_steps` and `stage_steps`."""

    @classmethod
    def read(cls, out: Path, minutes: float) -> Budget:
        """Return what an earlier start of this demo chose, or a budget with nothing chosen."""
        path = out / "budget.json"
        if not path.is_file():
            return cls(minutes)
        plain = read_json(path)
        return cls(**{**plain, "stage_steps": tuple(plain["stage_steps"]), "stage_seconds": tuple(plain["stage_seconds"])})

    def write(self, out: Path) -> None:
        """Record it."""
        write_text(out / "budget.json", json.dumps(asdict(self), indent=1) + "\n")

    def overrides(self) -> list[str]:
        """Return the overrides of the configuration that set what is chosen so far."""
        found = [f"tokenizer.training.steps={self.tokenizer_steps}"] if self.tokenizer_steps else []
        return found + [f"curriculum.stages.{number}.steps={steps}" for number, steps in enumerate(self.stage_steps)]


def fit(seconds: float, per_step: Sequence[float], wanted: Sequence[int], least: int) -> tuple[int, ...]:
    """Return the steps of each part: the wanted ones, or all cut by the same factor so that they take `seconds`, but at least `least`.

    Numbers cut are multiples of ten, so that a report reads well.
    """
    whole = sum(each * steps for each, steps in zip(per_step, wanted, strict=True))
    share = 1.0 if whole <= seconds else max(0.0, seconds) / whole
    if share == 1.0:
        return tuple(wanted)
    return tuple(min(steps, max(least, int(steps * share) // 10 * 10)) for steps in wanted)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a timing run's metrics."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def per_step(lines: Sequence[Mapping[str, Any]], pixels: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """Return the mean seconds per step of a mixture of shapes from timed steps of some of them, which cost by their pixels.

    pixels: pixels of a step of each shape. shares: share of the steps that have it.
    """
    counted = lines[LEFT_OUT:] if len(lines) > LEFT_OUT else lines
    rate = sum(line["seconds"]["total"] for line in counted) / sum(pixels[line["bucket"]] for line in counted)
    return float(rate * sum(pixels[name] * share for name, share in shares.items()))


def stage_seconds(lines: Sequence[Mapping[str, Any]], stages: int) -> tuple[float, ...]:
    """Return the median seconds per step of each stage, without its first step, which loads."""
    found = []
    for stage in range(stages):
        own = sorted(line["seconds"]["total"] for line in [each for each in lines if each["stage"] == stage][1:])
        found.append(own[len(own) // 2])
    return tuple(found)


class Stopwatch:
    """The time that a demo has taken so far, over all its starts."""

    def __init__(self, log: Path) -> None:
        before = lines_of(log) if log.is_file() else []
        self._before, self._began = sum(line["seconds"] for line in before), time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far: the commands of earlier starts, and all of this one."""
        return float(self._before) + time.monotonic() - self._began


def clear_timing(out: Path) -> Path:
    """Return the empty folder OUT/timing."""
    folder = out / "timing"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
