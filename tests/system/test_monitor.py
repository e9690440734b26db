"""`videoar monitor` in a real browser: curves, a video that plays, keys, a phone's width; nothing leaves the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.records import Reject
from pipeline.shards.schemas import reject_rows
from pipeline.video import write_video
from tests.helpers.browser import Page, browse, find
from tests.helpers.tools import lacking

pytestmark = pytest.mark.system
STEPS = 3000


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, steps in (("long", STEPS), ("one-step", 1)):
        run = tmp_path / "runs" / name
        (run / "log").mkdir(parents=True)
        with (run / "metrics.jsonl").open("w") as file:
            for step in range(1, steps + 1):
                row = {
                    "step": step, "stage_name": ("short", "long")[step > STEPS // 2], "bucket": "f009x64x64", "loss": 1 / step, "tokens": 100,
                    "scale_loss": {"1x1": 0.5, "2x2": 0.6}, "bit_accuracy": {"1x1": 0.5, "2x2": 0.6}, "seconds": {"total": 0.5, "data": 0.1},
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")
        (run / "status.json").write_text(
            json.dumps({"state": "finished", "step": steps, "steps": steps, "line": "<b>done</b>"})
        )
        (run / "run.json").write_text(
            json.dumps(
                {"starts": [{"hosts": ["a-host-with-a-long-name.example"] * 2, "resumed_from": 0, "packages": {"torch": "2"}}]}
            )
        )
        (run / "log" / "rank-0.log").write_text("the log's line\n")
    folder = run.with_name("long") / "samples" / "step-00000010"
    folder.mkdir(parents=True)
    write_video(folder / "000.mp4", np.random.default_rng(0).integers(0, 255, (17, 64, 64, 3), dtype=np.uint8), 8)
    (folder / "captions.json").write_text(json.dumps({"captions": ["a <i>rabbit</i>"]}))
    shards = run.with_name("long") / "shards"
    (shards / "f009x64x64").mkdir(parents=True)
    (shards / "dataset.json").write_text("{}")
    pq.write_table(pa.table({"shard": ["f009x64x64/shard-000000", "f009x64x64/shard-000001"]}), shards / "clips.parquet")
    (shards / "f009x64x64" / "shard-000000.parquet").write_bytes(b"")
    reject = Reject(str(folder / "000.mp4"), "plan", "too_short", "why <b>", 0.0, 1.0, {"length": 1.0}, "")
    pq.write_table(reject_rows([reject]), shards / "rejects.parquet")
    return tmp_path / "runs"


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "cluster.cli.main", "monitor", str(runs), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def test_the_page_in_a_browser(address: str, tmp_path: Path) -> None:
    if find() is None:
        lacking("Chromium", "chromium")
    points = "Object.fromEntries([...document.querySelectorAll('.chart')].map(each => [each.dataset.chart, Number(each.dataset.points)]))"
    inked = """[...document.querySelectorAll('.chart canvas')].every(canvas => {
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return data.some((value, at) => at % 4 === 3 && value > 0); })"""

    async def visit(page: Page) -> None:
        for width in (1280, 390):
            await page.size(width)
            await page.open("about:blank")
            await page.open(address)
            await page.until("document.querySelectorAll('table.runs tbody tr').length === 2")
            await page.open(address + "#/run/long")
            await page.until("document.body.dataset.ready && document.querySelectorAll('.chart').length >= 6")
            found = await page.run(points)
            assert found["loss"] > 300 and found["scale_loss"] > 600 and found["throughput"] > 300, found
            assert await page.until(inked)
            assert await page.run("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the page"
            assert "1 of 2 shards committed" in await page.run("document.body.innerText")
            caption = await page.run("document.querySelector('figcaption').textContent")
            assert caption == "a <i>rabbit</i>" and not await page.run("document.querySelector('figcaption i')")
            await page.run("document.querySelector('video').play()")
            await page.until("document.querySelector('video').currentTime > 0.2")
            await page.run("document.querySelector('details[data-key=rejects0] summary').click()")
            await page.until("document.querySelector('.refused img')?.naturalWidth === 160")
            assert not await page.run("document.querySelector('.refused b')")
            assert await page.run("document.querySelector('video').videoWidth") == 64
            await page.run("document.querySelector('details[data-key=\"log/rank-0.log\"] summary').click()")
            await page.until('document.body.innerText.includes("the log\'s line")')
        # by keyboard: plus zooms in around the cursor, 0 shows all
        await page.run("document.querySelector('[data-chart=loss] .plot').focus()")
        await page.key("ArrowLeft")
        await page.key("+")
        await page.until(
            "![...document.querySelectorAll('button')].find(each => each.textContent === 'Show all steps').disabled"
        )
        last = "Number(document.querySelector('[data-chart=loss]').dataset.begin)"
        await page.until(f"{last} > {STEPS // 2}")
        await page.key("0")
        await page.until(f"{last} === 1")
        # a curve of one point is seen
        await page.open(address + "#/run/one-step")
        await page.until(
            "document.querySelector('h1')?.textContent.includes('one-step') && !!document.querySelector('[data-chart=loss]')"
        )
        assert (await page.run(points))["loss"] == 1
        assert await page.until(inked)
        # two runs side by side
        await page.open(address + "#/compare/long,one-step")
        await page.until("document.querySelectorAll('.chart').length === 2")
        assert (await page.run(points))["loss"] > 300
        assert not page.console
        outside = [each for each in page.requests if not each.startswith((address, "data:", "about:"))]
        assert not outside and any("/media" in each for each in page.requests)

    browse(tmp_path / "profile", visit)
