from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cluster.demo.inputs import DemoError
from cluster.demo.steps import DemoSteps, MetricsScraper, Recipe


def test_a_failed_step_names_itself_and_its_exit_code(tmp_path: Path) -> None:
    steps = DemoSteps(tmp_path, tmp_path / "demo.yaml", Recipe((4,), None))
    assert steps.command("stops cleanly", "sh", "-c", "exit 75", accept=(0, 75)) == 75
    with pytest.raises(DemoError, match="the step `breaks` failed with exit code 3"):
        steps.command("breaks", "sh", "-c", "exit 3")
    lines = [json.loads(line) for line in (tmp_path / "commands.jsonl").read_text().splitlines()]
    assert [(line["title"], line["exit"]) for line in lines] == [("stops cleanly", 75), ("breaks", 3)]


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
        with MetricsScraper(tmp_path / "address", output, every=0.02) as scraper:
            (tmp_path / "address").write_text(f"127.0.0.1:{server.server_port}\n")
            for _ in range(500):
                if output.is_file() or scraper._stop.wait(0.02):
                    break
    finally:
        server.shutdown()
        server.server_close()
    assert output.read_text() == "videoar_train_step 3.0\n"


def test_training_is_stopped_in_the_first_stage_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = DemoSteps(tmp_path, tmp_path / "demo.yaml", Recipe((200,), None))
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(steps, "command", lambda title, *words, **_: commands.append(words))
    steps.train(200)
    assert [words[4:] for words in commands] == [("train.stop_after=101",), ()]
    (tmp_path / "checkpoints" / "step-00000101").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000101" / "DONE").touch()
    commands.clear()
    steps.train(200)
    assert [words[4:] for words in commands] == [()], "a demo that was resumed is not stopped again"


def test_samples_use_the_captions_of_the_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = DemoSteps(tmp_path, tmp_path / "demo.yaml", Recipe((200,), None))
    commands: list[tuple[str, ...]] = []

    def command(title: str, *words: str) -> None:
        Path(words[-1]).mkdir(parents=True)
        commands.append(words)

    monkeypatch.setattr(steps, "command", command)
    steps.samples([Path("a_red_bus.mp4"), Path("b.mp4")])
    steps.samples([Path("a_red_bus.mp4")])
    text, continuation = commands
    assert text[4:8] == ("--prompt", "a red bus", "--prompt", "b")
    assert continuation[4:8] == ("--prompt", "a red bus", "--prefix", "a_red_bus.mp4")
