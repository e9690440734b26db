import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from cluster.config import RunConfig


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(f"run: {{name: trial}}\ntokenizer: {{weights: {tmp_path / 'tokenizer'}}}\n")
    return path


def test_tokenize_hands_on_its_configuration_and_switches(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "pipeline.job.tokenize.tokenize", lambda resolved, **given: calls.append({"run": resolved.get(RunConfig), **given})
    )
    assert main.run(["tokenize", "-c", str(config), "run.seed=4"]) == 0
    assert main.run(["tokenize", "-c", str(config), "--retry", "--repair"]) == 0
    assert main.run(["tokenize", "-c", str(config), "--recaption"]) == 0
    assert calls == [
        {"run": RunConfig(name="trial", seed=4), "retry": False, "repair": False, "recaption": False},
        {"run": RunConfig(name="trial"), "retry": True, "repair": True, "recaption": False},
        {"run": RunConfig(name="trial"), "retry": False, "repair": False, "recaption": True},
    ]


def test_submit_runs_tokenize_of_this_python_and_ends_with_its_exit_code(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], str]] = []

    def run(resolved: object, command: list[str], *, address: str) -> int:
        calls.append((command, address))
        return 75

    monkeypatch.setattr("cluster.launch.ray_submit.run", run)
    monkeypatch.chdir(config.parent)
    assert main.run(["submit", "-c", "job.yaml", "run.seed=4", "--address", "http://10.0.0.1:8265"]) == 75
    command = [sys.executable, "-m", "cluster.cli.main", "tokenize", "-c", str(config), "run.seed=4"]
    command.append(f'pipeline.output="{config.parent}/shards"')  # relative paths are those of the folder that it is called in
    assert calls == [(command, "http://10.0.0.1:8265")]


def test_a_finished_tokenizer_is_not_trained_again(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def run(resolved: object, job: Any, *, folder: Path, checkpoints: Path, unfinished: Any) -> int:
        started.append((job.module, job.arguments, folder, unfinished()))
        return 0

    monkeypatch.setattr("cluster.launch.launcher.run", run)
    folder = config.parent / "tokenizer"
    assert main.run(["tokenizer", "train", "-c", str(config)]) == 0
    arguments = ("train", "-c", str(config))
    assert started == [("pipeline.tokenizer_jobs.main", arguments, folder, f"{folder} has no finished tokenizer")]
    monkeypatch.setattr("tokenizer.training.train.finished", lambda folder, digest: True)
    assert main.run(["tokenizer", "train", "-c", str(config)]) == 0
    assert len(started) == 1


def test_a_wrong_stride_of_an_import_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tokenizer", "import", "--from", str(tmp_path / "a.pth"), "--output", str(tmp_path / "b")]
    assert main.run([*words, "--temporal-stride", "3"]) == 1
    assert capsys.readouterr().err == "videoar: --temporal-stride 3: must be 1, 2 or 4\n"
