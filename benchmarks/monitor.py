"""How fast `videoar monitor` answers over a long history: python benchmarks/monitor.py [--steps 1000000]

A history of that many steps is written, read once, and then asked for over HTTP: all charts over all steps, charts of a tenth of them,
and the list of runs. The plain alternative sends every point of the loss curve alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from aiohttp.test_utils import TestClient, TestServer

from cluster.monitor.access import Access
from cluster.monitor.library import Library
from cluster.monitor.server import application

SCALES = ("1x1", "2x2", "3x3", "4x4", "6x6", "8x8")
LIMIT = 0.3


def write_history(path: Path, steps: int) -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.05, size=(1000, 16)).tolist()
    with path.open("w") as file:
        for step in range(1, steps + 1):
            d = draws[step % 1000]
            row = {
                "step": step, "stage": step * 3 // (steps + 1), "stage_name": f"stage {step * 3 // (steps + 1)}", "bucket": "f017x128x128",
                "loss": 0.7 * d[0], "scale_loss": dict(zip(SCALES, d[1:7])), "bit_accuracy": dict(zip(SCALES, d[7:13])), "grad_norm": d[13],
                "learning_rate": 1e-4, "tokens": 1_000_000, "seconds": {"total": d[14], "data": 0.01, "forward": 0.3, "backward": 0.6},
                "memory": {"resident": 1 << 34}, "skipped": "", "frame_loss": d[:5], "sample_ids": ["a" * 16, "b" * 16], "mfu": 0.4 * d[15],
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


async def ask(library: Library, steps: int) -> dict[str, list[float]]:
    paths = {
        "all charts, all steps": "/api/charts?run=run",
        "all charts, a tenth of the steps": f"/api/charts?run=run&begin={0.4 * steps}&end={0.5 * steps}",
        "one run": "/api/run?run=run",
        "list of runs": "/api/runs",
    }
    found: dict[str, list[float]] = {name: [] for name in paths}
    async with TestClient(TestServer(application(library, Access("")))) as client:
        for _ in range(7):
            for name, path in paths.items():
                begin = time.perf_counter()
                reply = await client.get(path)
                await reply.read()
                found[name].append(time.perf_counter() - begin)
                assert reply.status == 200
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        run.mkdir()
        write_history(run / "metrics.jsonl", steps)
        library, stopping = Library([run]), threading.Event()
        begin = time.perf_counter()
        history = library._histories_of(run, 0)[0]
        history.refresh()
        read = time.perf_counter() - begin
        print(f"{steps:,} steps, {history.size / 1e9:.2f} GB, read once in {read:.1f} s; later only what is new")
        thread = threading.Thread(target=library.read_on, args=(stopping,))
        thread.start()
        found = asyncio.run(ask(library, steps))
        stopping.set()
        thread.join()
        for name, seconds in found.items():
            print(
                f"{name:34} first {1e3 * seconds[0]:6.0f} ms, median {1e3 * statistics.median(seconds):6.0f} ms, worst {1e3 * max(seconds):6.0f} ms"
            )
        begin = time.perf_counter()
        json.dumps([history.column("step").tolist(), history.column("loss").tolist()])
        plain = time.perf_counter() - begin
    ours = statistics.median(found["all charts, all steps"])
    print(
        json.dumps(
            {
                "name": "monitor",
                "unit": "s",
                "ours": ours,
                "plain": plain,
                "ratio": plain / ours,
                "limit": LIMIT,
                "limit_share": ours / LIMIT,
            }
        )
    )


if __name__ == "__main__":
    main()
