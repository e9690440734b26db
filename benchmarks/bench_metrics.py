"""What metrics cost a job of many ranks: the report of a step on rank 0, and an answer to Prometheus, with faked heartbeats.

    python benchmarks/bench_metrics.py [--ranks 1024]

Prints seconds per step report and per scrape (CPU of the process, which the step's Python waits for at worst), the number of series, and the
share of a step's time: one report per step of one second, one scrape every ten.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prometheus_client import generate_latest

from cluster.metrics import Meter, StepReport, heartbeat

STEP_SECONDS, SCRAPE_SECONDS, TIMES = 1.0, 10.0, 50


def report(step: int) -> StepReport:
    """Return the report of a step with ten scales."""
    scales = {f"{size}x{size}": 0.5 for size in range(1, 11)}
    return StepReport(
        step=step, stage=0, stage_name="a", bucket="f017x256x256", loss=0.5, scale_loss=scales, bit_accuracy=scales, grad_norm=1.0,
        learning_rate=1e-4, tokens=1000, seconds=dict.fromkeys(("total", "data", "forward", "backward", "optimizer", "wait"), 0.1),
        memory={"resident": 1, "peak": 1, "device": 1}, mfu=math.nan,
    )  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1024)
    ranks = parser.parse_args().ranks
    with tempfile.TemporaryDirectory() as folder:
        run, meter = Path(folder), Meter()
        for rank in range(ranks):
            path = heartbeat.path_of(run, rank)
            path.parent.mkdir(exist_ok=True)
            path.write_text(
                json.dumps(asdict(heartbeat.Beat(rank, "node", 1, time.time(), 7, "step", 1.0, 0.1, 1, 1))).ljust(511) + "\n"
            )
        meter.begin("train_")
        meter.listen(run)
        meter.watch_disk(run)
        meter.step(report(0), 1000)
        begun = time.process_time()
        for step in range(TIMES):
            meter.step(report(step), 1000)
        each = (time.process_time() - begun) / TIMES
        begun = time.process_time()
        for _ in range(TIMES):
            text = generate_latest(meter.registry).decode()
        scrape = (time.process_time() - begun) / TIMES
    series = sum(not line.startswith("#") for line in text.splitlines())
    share = each / STEP_SECONDS + scrape / SCRAPE_SECONDS
    print(
        f"{ranks} ranks: {1e6 * each:.0f} us per step report, {1e3 * scrape:.1f} ms per scrape, {series} series: {100 * share:.2f} % of step time"
    )
    return 0 if share < 0.005 else 1


if __name__ == "__main__":
    sys.exit(main())
