"""Proof: a training job that is killed again and again ends with the losses and samples of one never disturbed.

    python benchmarks/proof_resume.py [--kills 20] [--seed 0] [--out DIR]          (`make proof-resume`)

Two ranks under ZeRO-3 on shards of random bits. Each disturbance is drawn: kill -9 of one rank, kill -9 of both, or SIGTERM to
one; after a drawn step, at a drawn moment. Then the same command starts again. At the end every loss, gradient norm and sample
id of every step is compared to the last digit. About 25 s a kill on two busy cores. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from pretrain.runs.compare import compare
from tests.helpers import training


def disturb(config: Path, run: Path, dice: random.Random, steps: int) -> str:
    """Start the job, disturb it once, wait for its end. Returns what happened."""
    done = len(training.metrics(run)) if (run / "metrics.jsonl").is_file() else 0
    kind = dice.choice(("kill one", "kill all", "SIGTERM"))
    process = training.start(config, 2, run, f"curriculum.stages.0.steps={steps - 8}")
    # At most a few steps past what is done, so that all disturbances fit into one run.
    at = min(steps - 1, max(1, done - 3) + dice.randint(0, 4))
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= at:
            break
    else:
        raise SystemExit(f"the job ended before step {at}:\n{said}")
    # The moment inside a step is part of the experiment, not a way to wait for something.
    threading.Event().wait(dice.random() * 0.4)
    ranks = (0, 1) if kind == "kill all" else (dice.randint(0, 1),)
    try:
        targets = [training.rank_process(process, rank) for rank in ranks]
        for target in targets:
            target.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
    except (AssertionError, psutil.NoSuchProcess):
        kind += " (a rank had ended)"
    process.communicate(timeout=300)
    passed = sum("is damaged and skipped" in line for line in said.splitlines())
    return f"{kind} of rank {', '.join(map(str, ranks))} after step {at}: exit code {process.returncode}, {passed} skipped"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    dice, began = random.Random(given.seed), time.perf_counter()
    steps = 20 + 3 * given.kills
    with tempfile.TemporaryDirectory() as temporary:
        config = training.prepare(given.out or Path(temporary))
        first, second = config.parent / "undisturbed", config.parent / "disturbed"
        training.train(config, 2, first, f"curriculum.stages.0.steps={steps - 8}")
        for number in range(1, given.kills + 1):
            print(f"{number:3d} {disturb(config, second, dice, steps)}", flush=True)
        training.train(config, 2, second, f"curriculum.stages.0.steps={steps - 8}")
        found = compare(first, second)
    print(f"{found.steps} of {steps} steps; equal to the last digit: {found.equal}")
    line = {"name": "proof_resume", "unit": "kills", "ours": given.kills, "plain": 0, "ratio": 1.0, "limit": given.kills}
    print(
        json.dumps(
            {**line, "limit_share": 1.0, "equal": found.equal, "steps": found.steps, "seconds": time.perf_counter() - began}
        )
    )
    return 0 if found.equal and found.steps == steps else 1


if __name__ == "__main__":
    sys.exit(main())
