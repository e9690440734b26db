from __future__ import annotations

import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.monitor.charts import View
from cluster.monitor.folders import MonitorError, NotThere
from cluster.monitor.library import Library


def make_run(folder: Path, steps: int = 5, **settings: object) -> Path:
    folder.mkdir(parents=True)
    rows = [{"step": step, "loss": 1 / step, "tokens": 10, "seconds": {"total": 0.1}} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(json.dumps({"train": settings}))
    return folder


def test_runs_and_one_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("damaged\n")
    library = Library([tmp_path])
    assert [row["id"] for row in library.runs()["runs"]] == ["one"]
    shown = library.run("one")
    assert shown["step"] == 5 and shown["problems"] == [f"{run / 'metrics.jsonl'}: 1 damaged lines are left out"]
    assert {chart["name"] for chart in library.charts("one", View())} >= {"loss", "throughput"}
    json.dumps(shown, allow_nan=False)


def test_what_is_not_shown_is_not_there(tmp_path: Path) -> None:
    library = Library([make_run(tmp_path / "one")])
    make_run(tmp_path / "beside")
    for name in ("beside", "../beside", "", "prometheus:x", str(tmp_path)):
        for ask in (library.run, lambda name: library.charts(name, View()), lambda name: library.media(name, "a.mp4")):
            with pytest.raises(NotThere):
                ask(name)
    with pytest.raises(MonitorError, match="no such folder"):
        Library([tmp_path / "none"])


def test_runs_of_one_name_are_compared(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "run", 5, lr=1)
    make_run(tmp_path / "b" / "run", 9, lr=2)
    found = Library([tmp_path]).compare(["a/run", "b/run"], View())
    assert found["settings"] == [{"key": "train.lr", "values": ["1", "2"]}]
    (loss, *_) = found["charts"]
    assert [len(run["x"]) for run in loss["runs"]] == [5, 9]


def test_thumbnails_are_made_once_until_rejects_change(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    (run / "shards").mkdir()
    (run / "shards" / "dataset.json").write_text("{}")
    made: list[Path] = []

    def page(folder: Path) -> str:
        made.append(folder)
        return "<html>"

    library = Library([tmp_path], rejects_page=page)
    with pytest.raises(NotThere):
        library.rejects("one", 0)
    pq.write_table(pa.table({"stage": ["a"], "reason": ["b"]}), run / "shards" / "rejects.parquet")
    assert library.rejects("one", 0) == library.rejects("one", 0) == "<html>"
    assert made == [run / "shards"]
    for number in (-1, 1):
        with pytest.raises(NotThere):
            library.rejects("one", number)


def test_histories_are_read_in_the_background(tmp_path: Path) -> None:
    library, stopping = Library([make_run(tmp_path / "one", 2000)]), threading.Event()
    thread = threading.Thread(target=library.read_on, args=(stopping,))
    thread.start()
    history = library._histories_of(tmp_path / "one", 0)[0]
    while history.rows < 2000:
        assert thread.is_alive()
    stopping.set()
    thread.join()


def test_a_prometheus_that_does_not_answer_hides_no_folder(tmp_path: Path) -> None:
    found = Library([make_run(tmp_path / "one")], "http://127.0.0.1:9").runs()
    assert [row["id"] for row in found["runs"]] == ["one"]
    assert "http://127.0.0.1:9: no answer" in found["problems"][0]
