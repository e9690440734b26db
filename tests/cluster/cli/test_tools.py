import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from cluster.cli.tools import BENCHMARKS, job_inputs
from cluster.config import load
from cluster.launch.preflight import StageInputs
from tests.helpers import made_shards


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    mix = "mix: [{bucket: f005x32x32, batch: 2}, {bucket: f009x48x48, batch: 2}]"
    path.write_text(
        f"run: {{dir: {tmp_path / 'run'}}}\npipeline: {{output: {tmp_path / 'shards'}, min_free_gb: 0.001}}\n"
        f"tokenizer: {{weights: {tmp_path / 'tokenizer'}}}\nmetrics: {{port: 0}}\n"
        f"curriculum: {{stages: [{{name: both, steps: 3, {mix}}}]}}\n"
    )
    return path


def test_the_inputs_of_a_job_come_from_the_other_packages_sections(config: Path) -> None:
    inputs = job_inputs(load(config))
    folder = config.parent
    assert (inputs.tokenizer, inputs.output, inputs.min_free_gb) == (folder / "tokenizer", folder / "shards", 0.001)
    assert inputs.shards == (folder / "shards",) and inputs.stages == (StageInputs("both", ("f005x32x32", "f009x48x48")),)
    assert job_inputs(load(config, ["curriculum.shards=[a, 's3://b/c']"])).shards == (Path("a"), "s3://b/c")


@pytest.mark.parametrize("words", [["--via", "ssh"], ["--via", "slurm", "--hostfile", "hosts"]])
def test_preflight_refuses_a_hostfile_that_is_missing_or_too_much(
    config: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["preflight", "-c", str(config), *words]) == 2
    assert (
        capsys.readouterr().err
        == "videoar: --via ssh needs --hostfile FILE, --via slurm and --via ray take none: they know their nodes\n"
    )


def test_preflight_prints_a_table_and_fails_with_what_is_missing(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    made_shards.make(config.parent / "shards", {"f005x32x32": 3})
    assert main.run(["preflight", "-c", str(config), "train.sample_every=5"]) == 1
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert "FAIL" in rows["stage both"] and "f005x32x32 (3), f009x48x48 (0)" in rows["stage both"]
    assert "add f009x48x48 to pipeline.buckets" in rows["stage both"]
    assert "FAIL" in rows["tokenizer"] and str(config.parent / "tokenizer") in rows["tokenizer"]
    assert "ok" in rows["python"] and "no complete checkpoint of step 3" in rows["checkpoint"]
    assert main.run(["preflight", "-c", str(config), "--json"]) == 1
    plain = json.loads(capsys.readouterr().out)
    findings = {each["check"]: each for each in plain["findings"]}
    assert (plain["job"], plain["ok"]) == ("train", False) and set(findings) == set(rows) - {"check", ""}
    assert findings["stage both"]["ok"] is False and findings["python"]["ok"] is True


def test_bench_runs_the_script_of_its_name_and_hands_on_the_rest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        started.append(words[1:])
        return subprocess.CompletedProcess(words, 3)

    monkeypatch.setattr(subprocess, "run", run)
    assert main.run(["bench", "train", "--rounds", "1"]) == 3
    assert main.run(["bench", "tokenize", "--codec-only", "--json"]) == 3
    folder = root / "benchmarks"
    assert started == [[str(folder / "train_model.py"), "--rounds", "1"], [str(folder / "bench_codec.py"), "--json"]]
    assert all((folder / script).is_file() for script in BENCHMARKS.values())


def test_bench_outside_of_a_clone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cluster.runtime.source_tree.source_root", lambda: tmp_path)
    assert main.run(["bench", "train"]) == 1
    script = tmp_path / "benchmarks" / "train_model.py"
    assert capsys.readouterr().err == f"videoar: {script}: no benchmarks here; run it from a clone of the repository\n"


def test_report_dashboards_and_compare_are_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = {"step": 1, "stage": 0, "stage_name": "a", "bucket": "f005x32x32", "loss": 0.7, "scale_loss": {"1x1": 0.7}}
    step |= {"bit_accuracy": {"1x1": 0.5}, "tokens": 10, "seconds": {"total": 1.0, "forward": 0.8}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    assert main.run(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n"
    assert main.run(["dashboards", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.endswith(f"start: prometheus --config.file={tmp_path}/out/prometheus/prometheus.yml\n")
    assert main.run(["compare", str(tmp_path), str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.startswith("videoar: ")
