"""Two runs compared: settings, code and data that differ, and how far the losses are apart.

    python -m pretrain.runs.compare RUN_A RUN_B            (also `videoar compare`)

In:  two run folders (config.yaml, run.json, metrics.jsonl).
Out: lines; exit code 0 if losses and samples are equal to the last digit in all steps that both runs have, else 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.config.differences import differences
from cluster.runtime.atomic_files import DamagedFile, read_json


class CompareError(ValueError):
    """A folder that holds no run; the message names it."""


@dataclass(frozen=True)
class Comparison:
    """The result."""

    settings: tuple[str, ...]
    """One line `key: a -> b` per setting that differs."""
    origin: tuple[str, ...]
    """The same for code, packages, hosts and data of each run's last start."""
    steps: int
    """Steps that both runs have."""
    first_difference: int
    """First step whose loss differs, or 0."""
    first_other_samples: int
    """First step trained on different samples, or 0."""
    largest: float
    """Largest relative difference of the losses."""

    @property
    def equal(self) -> bool:
        """Whether losses and samples are equal to the last digit."""
        return self.steps > 0 and not self.first_difference and not self.first_other_samples


def compare(first: Path, second: Path) -> Comparison:
    """Compare two run folders. Raises CompareError for a folder that holds no run."""
    ours, theirs = _metrics(first), _metrics(second)
    both = sorted(ours.keys() & theirs.keys())
    pairs = [(step, ours[step], theirs[step]) for step in both]
    apart = [
        (step, abs(a["loss"] - b["loss"]) / max(abs(a["loss"]), 1e-30))
        for step, a, b in pairs
        if a["loss"] is not None and b["loss"] is not None
    ]
    differ = [step for step, a, b in pairs if a["loss"] != b["loss"]]
    others = [step for step, a, b in pairs if a["sample_ids"] != b["sample_ids"]]
    return Comparison(
        settings=tuple(differences(_yaml(first), _yaml(second))),
        origin=tuple(differences(_start(first), _start(second))),
        steps=len(both),
        first_difference=differ[0] if differ else 0,
        first_other_samples=others[0] if others else 0,
        largest=max((value for _, value in apart), default=0.0),
    )


def _metrics(run: Path) -> dict[int, dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except OSError as error:
        raise CompareError(f"{run}: no run here ({error.strerror}: metrics.jsonl)") from error
    except json.JSONDecodeError as error:
        raise CompareError(f"{run}/metrics.jsonl: {error}") from error
    return {line["step"]: line for line in lines}


def _yaml(run: Path) -> Any:
    path = run / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def _start(run: Path) -> Any:
    path = run / "run.json"
    return read_json(path)["starts"][-1] if path.is_file() else {}


def lines(found: Comparison, first: Path, second: Path) -> list[str]:
    """Return the comparison as lines of text."""
    text = [f"{first} -> {second}"]
    text += [f"  setting  {line}" for line in found.settings] or ["  settings are equal"]
    text += [f"  origin   {line}" for line in found.origin] or ["  code, packages, hosts and data are equal"]
    text.append(
        f"  {found.steps} steps in both; samples "
        + (f"differ from step {found.first_other_samples} on" if found.first_other_samples else "are the same at every step")
    )
    text.append(
        f"  losses differ from step {found.first_difference} on, by {found.largest:.2e} at most (relative)"
        if found.first_difference
        else "  losses are equal to the last digit"
    )
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Print a comparison; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pretrain.runs.compare", description="Compare two run folders.")
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    given = parser.parse_args(argv)
    try:
        found = compare(given.first, given.second)
    except (CompareError, DamagedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(found, given.first, given.second)))
    return 0 if found.equal else 1


if __name__ == "__main__":
    sys.exit(main())
