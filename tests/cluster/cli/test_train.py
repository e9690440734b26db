from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from cluster.cli.train import unfinished
from cluster.config import load

MIX = "mix: [{bucket: f005x32x32, batch: 2}]"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    stages = f"[{{name: a, steps: 3, {MIX}}}, {{name: b, steps: 4, {MIX}}}]"
    path.write_text(f"run: {{dir: {tmp_path / 'run'}}}\ncurriculum: {{stages: {stages}}}\n")
    return path


def test_a_run_is_unfinished_until_the_last_step_of_the_last_stage(config: Path) -> None:
    assert "no complete checkpoint of step 7" in unfinished(load(config))
    assert "no complete checkpoint of step 2" in unfinished(load(config, ["train.stop_after=2"]))
    in_tokens = load(config, ["curriculum.stages.0.steps=0", "curriculum.stages.0.tokens=1000"])
    assert "no status.json with the number of steps" in unfinished(in_tokens)


def test_launch_starts_the_job_and_ends_with_its_exit_code(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def run(resolved: object, job: Any, *, unfinished: Any) -> int:
        started.append((job.module, job.arguments, unfinished()))
        return 75

    monkeypatch.setattr("cluster.launch.launcher.run", run)
    assert main.run(["launch", "-c", str(config), "train.stop_after=5"]) == 75
    [(module, arguments, reason)] = started
    assert module == "pretrain.train" and arguments == ("-c", str(config), "train.stop_after=5")
    assert "no complete checkpoint of step 5" in reason


def test_sample_names_the_bucket_of_the_shards_when_there_is_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []

    def run(resolved: object, request: Any, output: Path, **given: Any) -> list[Path]:
        calls.append((request, given))
        return [output / "0.mp4"]

    monkeypatch.setattr("pretrain.sampling.generate.run", run)
    config = tmp_path / "job.yaml"
    config.write_text("pipeline: {buckets: [{frames: 5, height: 32, width: 32}]}\n")
    words = ["sample", "-c", str(config), "--output", str(tmp_path), "--prompt", "a", "--prompt", "b", "--device", "cpu"]
    assert main.run(words) == 0
    [(request, given)] = calls
    assert (
        list(request.prompts) == ["a", "b"]
        and (given["bucket"], given["fallback"]) == (None, "f005x32x32")
        and given["device"] == "cpu"
    )
    assert capsys.readouterr().out.endswith(f"{tmp_path}/0.mp4\n")


def test_sample_takes_prompts_from_a_file_and_knows_where_each_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("pretrain.sampling.generate.run", lambda resolved, request, output, **given: seen.append(request) or [])
    (tmp_path / "job.yaml").write_text("")
    file = tmp_path / "prompts.txt"
    file.write_text("a dog\n\na cow\n")
    words = ["sample", "-c", str(tmp_path / "job.yaml"), "--output", str(tmp_path), "--device", "cpu"]
    assert main.run([*words, "--prompts", str(file)]) == main.run([*words, "--prompts", str(file), "--prompt", "x"]) == 0
    assert main.run(words) == 0
    assert [list(request.prompts) for request in seen] == [["a dog", "a cow"], ["x", "a dog", "a cow"], [""]]
    assert list(seen[1].places) == ["--prompt 1", f"{file}:1", f"{file}:3"]
