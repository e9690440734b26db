from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.monitor.charts import View, one, tokenizer, training, validation
from cluster.monitor.history import History


def history_of(path: Path, rows: list[dict[str, object]]) -> History:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    history = History(path)
    history.refresh()
    return history


@pytest.fixture
def history(tmp_path: Path) -> History:
    rows: list[dict[str, object]] = [
        {
            "step": step, "stage": step // 501, "stage_name": ("short", "long")[step // 501], "bucket": "f009x64x64", "loss": 1.0 / step,
            "scale_loss": {"1x1": 0.6, "2x2": 0.7}, "bit_accuracy": {"1x1": 0.5, "2x2": 0.75}, "tokens": 1000, "seconds": {"total": 0.5},
            "memory": {"resident": 2**30}, "mfu": None,
        }
        for step in range(1, 1001)
    ]  # fmt: skip
    return history_of(tmp_path / "metrics.jsonl", rows)


def test_charts_of_training(history: History) -> None:
    charts = {chart.name: chart for chart in training(history, View(100))}
    assert [label for label, _ in charts["loss"].curves] == ["short · f009x64x64", "long · f009x64x64"]
    assert [label for label, _ in charts["scale_loss"].curves] == ["1x1", "2x2"]
    assert charts["bit_accuracy"].curves[1][1][0] == 75.0, "in percent"
    assert charts["throughput"].curves[0][1][0] == 2000.0
    assert charts["memory"].curves[0][1][0] == 1.0
    assert "mfu" not in charts, "what was never measured is not drawn"
    for chart in charts.values():
        assert len(chart.x) == 200
        assert all(len(values) == 200 for _, values in chart.curves)
        json.dumps(chart.json(), allow_nan=False)


def test_a_range_shows_each_of_its_steps_and_one_beside(history: History) -> None:
    (loss,) = (chart for chart in training(history, View(100, 500, 510)) if chart.name == "loss")
    assert loss.x == list(range(499, 512))
    short, long = (values for _, values in loss.curves)
    assert short[:3] == [pytest.approx(1 / step, rel=1e-5) for step in (499, 500)] + [None]
    assert long[1] is None and long[2] == pytest.approx(1 / 501, rel=1e-5)


def test_many_rows_come_from_blocks_and_keep_a_spike(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"step": step, "loss": 9.0 if step == 3333 else 0.5} for step in range(1, 10_001)]
    chart = one(history_of(tmp_path / "metrics.jsonl", rows), View(10), "loss")
    assert chart is not None and len(chart.x) == 20
    assert max(value for value in chart.curves[0][1] if value is not None) == 9.0


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    empty = History(tmp_path / "none.jsonl")
    assert training(empty, View()) == tokenizer(empty, View()) == validation(empty, View()) == []
    assert one(empty, View(), "loss") is None


def test_validation_by_stream_and_the_tokenizer(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"step": 5, "stream": stream, "loss": 0.5} for stream in ("a", "b")]
    (chart,) = validation(history_of(tmp_path / "validation.jsonl", rows), View())
    assert chart.curves == [("a", [0.5, None]), ("b", [None, 0.5])]
    rows = [{"step": 5, "bucket": "f", "loss": 0.5, "psnr": 20.0, "bit_entropy": {"1x1": 0.9}}]
    assert [chart.name for chart in tokenizer(history_of(tmp_path / "t.jsonl", rows), View())] == [
        "tokenizer_loss",
        "tokenizer_psnr",
        "tokenizer_entropy",
    ]
