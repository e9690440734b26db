import re
import socket
from pathlib import Path

import pytest

from cluster.cli.tools import job_inputs
from cluster.cli.train import unfinished
from cluster.config import Config, load
from cluster.launch import preflight
from cluster.launch.preflight import Finding, JobKind, Probes, ShardFacts

MIX = "mix: [{bucket: f005x32x32, batch: 2}, {bucket: f009x48x48, batch: 2}]"
SHARDS = ShardFacts("a" * 64, {"f005x32x32": 7, "f009x48x48": 5})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "job.yaml"
    file.write_text(
        f"run: {{dir: {tmp_path / 'run'}}}\npipeline: {{output: {tmp_path / 'shards'}}}\nmetrics: {{port: 0}}\n"
        f"curriculum: {{stages: [{{name: both, steps: 3, {MIX}}}]}}\n"
    )
    return load(file)


def fine(shards: ShardFacts = SHARDS, tokenizer: str = "a" * 64, videos: int = 4) -> Probes:
    return Probes(lambda folder: tokenizer, lambda folder: shards, lambda: videos, lambda: "")


def check(config: Config, probes: Probes, job: JobKind = "train", hostfile: Path | None = None) -> list[Finding]:
    return preflight.check(config, job_inputs(config), probes, job, hostfile)


def failed(rows: list[Finding]) -> dict[str, Finding]:
    return {row.check: row for row in rows if not row.ok}


@pytest.mark.parametrize("job", ["tokenize", "train"])
def test_a_sound_job_passes(config: Config, job: JobKind) -> None:
    rows = check(config, fine(), job)
    assert not failed(rows)
    assert {"python", "packages", "devices", "tokenizer"} <= {row.check for row in rows}
    assert ("corpus" in {row.check for row in rows}) == (job == "tokenize")
    assert all(row.found for row in rows)
    dtype = next(row for row in rows if row.check == "dtype")
    assert re.search(r"auto is (bfloat16|float32); GFLOP/s: float32 [\d,]+, bfloat16 [\d,]+$", dtype.found)


def test_another_tokenizer_is_found(config: Config) -> None:
    row = failed(check(config, fine(tokenizer="b" * 64)))["shards"]
    assert "12 samples by tokenizer aaaaaaaaaaaa" in row.found and "tokenizer.weights is bbbbbbbbbbbb" in row.fix


def test_a_stage_whose_shape_has_no_samples_is_found(config: Config) -> None:
    row = failed(check(config, fine(ShardFacts("a" * 64, {"f005x32x32": 7, "f009x48x48": 0}))))["stage both"]
    assert row.found == "f005x32x32 (7), f009x48x48 (0)" and row.fix.startswith("add f009x48x48 to pipeline.buckets")
    assert "curriculum" in failed(check(load(config.source, ["curriculum.stages=[]"]), fine()))


def test_samples_add_up_over_several_folders(config: Config) -> None:
    parts = {"one": ShardFacts("a" * 64, {"f005x32x32": 1}), "two": ShardFacts("a" * 64, {"f009x48x48": 1})}
    look = Probes(lambda folder: "a" * 64, lambda folder: parts[str(folder)], lambda: 1, lambda: "")
    assert not failed(check(load(config.source, ["curriculum.shards=[one, two]"]), look))
    assert set(failed(check(load(config.source, ["curriculum.shards=[one]"]), look))) == {"stage both"}


def test_what_cannot_be_looked_at_is_a_row_with_its_reason(config: Config) -> None:
    def absent(*_: object) -> str:
        raise ValueError("no such thing; make it")

    sampling = load(config.source, ["train.sample_every=5"])
    rows = failed(check(sampling, Probes(absent, absent, absent, lambda: "")))  # type: ignore[arg-type]
    assert rows["tokenizer"].found == rows["shards"].found == "no such thing; make it"
    assert (
        failed(check(config, Probes(absent, absent, absent, lambda: ""), "tokenize"))["corpus"].found
        == "no such thing; make it"
    )  # type: ignore[arg-type]


def test_training_that_makes_no_samples_needs_no_tokenizer(config: Config, tmp_path: Path) -> None:
    def absent(folder: Path) -> str:
        raise ValueError(f"{folder}: no tokenizer there")

    probes = Probes(absent, fine().shards, fine().videos, lambda: "")
    silent = load(config.source, [f"tokenizer.weights={tmp_path / 'none'}", "train.sample_every=0"])
    rows = {row.check: row for row in check(silent, probes)}
    assert not [row for row in rows.values() if not row.ok]
    assert "training needs none" in rows["tokenizer"].found and "12 samples by tokenizer aaaaaaaaaaaa" in rows["shards"].found
    assert list(failed(check(silent, probes, "tokenize"))) == ["tokenizer"]
    assert list(
        failed(check(load(silent.source, ["train.sample_every=5", f"tokenizer.weights={tmp_path / 'none'}"]), probes))
    ) == ["tokenizer"]
    (tmp_path / "none").mkdir()
    assert list(failed(check(silent, probes))) == ["tokenizer"], "one that is damaged is no absent one"


def test_no_videos(config: Config) -> None:
    assert failed(check(config, fine(videos=0), "tokenize"))["corpus"].fix == "set corpus.videos"


def test_a_port_in_use_and_a_foreign_address(config: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        row = failed(check(load(config.source, [f"metrics.port={port}"]), fine()))["metrics.port"]
        assert row.found == f"127.0.0.1:{port} is in use"
    row = failed(check(load(config.source, ["metrics.host=203.0.113.1", "metrics.port=9400"]), fine()))["metrics.port"]
    assert row.fix == "use an address of this machine"


def test_too_little_disk(config: Config) -> None:
    row = failed(check(load(config.source, ["pipeline.min_free_gb=1e9"]), fine()))["run folder"]
    assert "GB free" in row.found and row.fix.startswith("free 1e+09 GB")


def test_the_state_of_the_run_is_told(config: Config, tmp_path: Path) -> None:
    probes = Probes(fine().tokenizer, fine().shards, fine().videos, lambda: unfinished(config))

    def told() -> str:
        return next(row.found for row in check(config, probes) if row.check == "checkpoint")

    assert "no complete checkpoint of step 3 (newest: none)" in told()
    done = tmp_path / "run/checkpoints/step-00000003/DONE"
    done.parent.mkdir(parents=True)
    done.touch()
    assert "the run is complete" in told()
