from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.metrics import JsonLines, StepReport
from cluster.monitoring.report import ReportError, read_lines, shard_rows, write


def a_step(step: int, stage: int) -> StepReport:
    return StepReport(
        step=step,
        stage=stage,
        stage_name=("short", "long")[stage],
        bucket=("f009x64x64", "f017x96x96")[stage],
        loss=0.7 / step,
        scale_loss={"1x1": 0.6 / step, "2x2": 0.7 / step},
        bit_accuracy={"1x1": 0.5 + 0.01 * step, "2x2": 0.5},
        grad_norm=1.0,
        learning_rate=1e-3,
        tokens=1000,
        seconds={"total": 0.5, "data": 0.1, "forward": 0.4},
        memory={"resident": 1},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with JsonLines(tmp_path / "metrics.jsonl") as lines:
        for step in range(1, 9):
            lines.write(a_step(step, int(step > 4)))
    (tmp_path / "shards").mkdir()
    rows = {"shard": ["f009x64x64/shard-000000"] * 2, "source": ["/videos/a.mp4", "/videos/b.mp4"], "bits_size": [100, 150]}
    pq.write_table(pa.table(rows), tmp_path / "shards" / "index.parquet")
    rejects = {"source": ["/videos/broken.mp4"], "stage": ["probe"], "reason": ["no_video_stream"]}
    pq.write_table(pa.table(rejects), tmp_path / "shards" / "rejects.parquet")
    (tmp_path / "samples" / "text").mkdir(parents=True)
    (tmp_path / "samples" / "text" / "one.mp4").write_bytes(b"\0" * 100)
    (tmp_path / "samples" / "text" / "samples.json").write_text(json.dumps({"prompts": ["a <rabbit>"], "prefix": None}))
    (tmp_path / "run.json").write_text(json.dumps({"starts": [{"resumed_from": 0}, {"resumed_from": 5}]}))
    return tmp_path


def test_report_holds_everything_and_needs_no_network(run: Path) -> None:
    page = write(run).read_text()
    for part in (
        "<td>2</td><td>250</td><td>2</td>",
        "broken.mp4",
        "no_video_stream",
        "a &lt;rabbit&gt;",
        "data:video/mp4;base64,",
    ):
        assert part in page
    assert page.count("<svg") == 7  # loss, two of each stage, two of throughput
    assert "0.700 → 0.175" in page  # stage 1, first and last step
    assert "Stopped after step 5 and resumed" in page
    for fetched in ('src="http', 'href="http', "url(http", "@import"):
        assert fetched not in page


def test_report_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"no metrics.jsonl with a step"):
        write(tmp_path)


def test_a_half_written_last_line_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert read_lines(path) == [{"step": 1}]
    path.write_text('{"st\n{"step": 1}\n')
    with pytest.raises(ReportError, match=r"metrics.jsonl:1: not a JSON line"):
        read_lines(path)


def test_what_fitted_into_the_time_and_what_more_would_give(run: Path) -> None:
    with (run / "tokenizer-metrics.jsonl").open("w") as file:
        file.writelines(json.dumps({"step": n, "loss": 1.0, "l1": 0.1, "psnr": 15 + 0.2 * n}) + "\n" for n in range(40))
    assert "What fitted" not in write(run).read_text(), "no budget: not a demo"
    plain = {
        "minutes": 8.0,
        "tokenizer_steps": 900,
        "stage_steps": [110, 90],
        "tokenizer_seconds": 0.24,
        "stage_seconds": [0.5, 1.0],
    }
    plain["recipe"] = {"tokenizer_steps": 1400, "stage_steps": [200, 160]}
    (run / "budget.json").write_text(json.dumps(plain))
    page = write(run).read_text()
    assert "900 of the recipe&#39;s 1400 steps for the tokenizer (0.24 s each), 110 + 90 of 200 + 160" in page
    assert "would take 4 more minutes on this machine: videoar demo --minutes 13" in page  # 500 x 0.24 + 90 x 0.5 + 70 x 1
    assert "18.9 dB at half of its steps and 22.1 dB at the end" in page
    (run / "budget.json").write_text(json.dumps({**plain, "tokenizer_seconds": 0.0, "stage_seconds": []}))
    assert "What fitted" not in write(run).read_text(), "nothing was timed"


def test_a_run_of_one_step_has_points_that_are_seen(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "metrics.jsonl") as lines:
        lines.write(a_step(1, 0))
    page = write(tmp_path).read_text()
    assert page.count("<use ") >= 1 + 4 + 1, "a marker for the loss, for two scales twice, for the speed"


def test_what_a_run_ran_with_and_samples_with_their_prompts(run: Path) -> None:
    start = {
        "resumed_from": 0,
        "hosts": ["a", "a"],
        "packages": {"torch": "2.13"},
        "data_digest": "d1",
        "config_digest": "c1",
        "commit": "k1",
    }
    (run / "run.json").write_text(json.dumps({"starts": [start]}))
    (run / "config.yaml").write_text("train: {lr: <1>}\n")
    folder = run / "samples" / "step-00000005"
    folder.mkdir()
    (folder / "000.mp4").write_bytes(b"x")
    (folder / "captions.json").write_text(json.dumps({"captions": ["a red bus"]}))
    page = write(run).read_text()
    for part in ("a red bus", "step-00000005", "a × 2", "2.13", ">d1<", ">c1<", ">k1<", "train: {lr: &lt;1&gt;}"):
        assert part in page


def test_shards_are_summed_up_by_shape(tmp_path: Path) -> None:
    rows = {"shard": ["b/shard-0", "b/shard-1", "a/shard-0"], "source": ["x", "y", "x"], "bits_size": [1, 2, 1000]}
    pq.write_table(pa.table(rows), tmp_path / "index.parquet")
    found = [tuple(row.values()) for row in shard_rows(tmp_path)]
    assert found == [("a", "1", "1", "1,000", "1"), ("b", "2", "2", "3", "2"), ("all", "3", "3", "1,003", "2")]
