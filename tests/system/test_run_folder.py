"""A run folder under bad disks, damaged checkpoints, second jobs and other settings: whole jobs of one rank, a few seconds each."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import training

pytestmark = pytest.mark.system
FAST = ("deepspeed.zero_optimization.stage=0", "metrics.enabled=false", "train.ema=0")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.prepare(tmp_path_factory.mktemp("folder"))


def start(config: Path, run: Path, *overrides: str, limit: int = 0, module: str = "pretrain.train") -> subprocess.Popen[str]:
    """Start a job of one rank. limit: bytes that each of its files may have."""
    return subprocess.Popen(
        [sys.executable, "-m", module, "-c", str(config), f"run.dir={run}", *FAST, *overrides],
        env=training.environment(), cwd=config.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None,
    )  # fmt: skip


def job(config: Path, run: Path, *overrides: str, code: int = 0, limit: int = 0) -> str:
    process = start(config, run, *overrides, limit=limit)
    said, _ = process.communicate(timeout=training.PATIENCE)
    assert process.returncode == code, f"exit code {process.returncode}, {code} expected:\n{said}"
    return said


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def damage(run: Path, step: int) -> None:
    file = next((run / "checkpoints" / f"step-{step:08d}" / "zero").glob("*.pt"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def test_damaged_checkpoints_are_set_aside_and_never_counted(config: Path) -> None:
    run = config.parent / "damaged"
    job(config, run, "train.stop_after=9", code=75)  # 4, 8, 9
    for step in (8, 9):
        damage(run, step)
    said = job(config, run, "train.keep_checkpoints=1", "train.stop_after=6", code=75)
    assert "continuing after step 4" in said and said.count("it is set aside as") == 2
    assert checkpoints(run) == ["step-00000006"]
    assert [line["step"] for line in training.metrics(run)] == list(range(1, 7))
    # All of them: not a word about step 1 without being told, and nothing is lost when told.
    damage(run, 6)
    before = (run / "metrics.jsonl").read_bytes()
    said = job(config, run, code=2)
    assert "all checkpoints are damaged (step-00000006: zero/" in said and "train.start_over=true" in said
    assert checkpoints(run) == ["step-00000006"] and (run / "metrics.jsonl").read_bytes() == before
    said = job(config, run, "train.start_over=true", "train.stop_after=4", code=75)
    assert "step 1/20" in said and (run / "aside" / "metrics.jsonl").read_bytes() == before
    assert checkpoints(run) == ["step-00000004"] and len(list((run / "aside" / "checkpoints").iterdir())) == 3
    # With the key left in the configuration, a restart goes on with what was trained since.
    said = job(config, run, "train.start_over=true", "train.stop_after=5", code=75)
    assert "continuing after step 4" in said and "train.start_over: done before" in said
    # Sound checkpoints of before are set aside when told.
    other = config.parent / "sound"
    job(config, other, "train.stop_after=4", code=75)
    said = job(config, other, "train.start_over=true", "train.stop_after=3", code=75)
    assert "step 1/20" in said and checkpoints(other) == ["step-00000003"]


def test_a_job_without_its_last_checkpoint_on_the_disk_has_failed(config: Path) -> None:
    for overrides in (("train.stop_after=6",), ()):
        run = config.parent / f"small-disk-{len(overrides)}"
        said = job(config, run, *overrides, code=1, limit=150_000)
        last = 6 if overrides else 20
        assert f"step {last} is trained, but its checkpoint is not on the disk (rank 0: " in said and "Traceback" not in said
        assert (status(run)["state"], status(run)["step"]) == ("failed", last)
        assert len(training.metrics(run)) == last
    # Once there is room, the same command ends as it should.
    job(config, run)
    assert status(run)["state"] == "finished"


def test_a_run_folder_takes_one_job_whatever_started_it(config: Path) -> None:
    run = config.parent / "one"
    first = start(config, run, "curriculum.stages.0.steps=100000", "train.checkpoint_every=100000")
    try:
        training.until(first, "step 3/")
        copied = config.parent / "copied.yaml"
        shutil.copy(config, copied)
        said = job(copied, run, code=2)
        assert f"{run}: another job is using this run folder (" in said and f"process {first.pid} on " in said
        # The launcher was killed with -9: its job is named by what it holds, and another run of the same file is left alone.
        launch = [sys.executable, "-m", "cluster.cli.main", "launch", "-c"]
        again = [*launch, str(copied), f"run.dir={run}", *FAST]
        done = subprocess.run(again, env=training.environment(), cwd=config.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and f"process {first.pid} on " in done.stderr and f"`touch {run / 'stop'}`" in done.stderr
        other = config.parent / "another"
        words = [*launch, str(config), f"run.dir={other}", *FAST, "train.stop_after=2"]
        done = subprocess.run(words, env=training.environment(), cwd=config.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 75, done.stdout + done.stderr
        assert first.poll() is None
        (run / "stop").touch()
        first.communicate(timeout=training.PATIENCE)
        assert first.returncode == 75 and not (run / "stop").exists()
    finally:
        first.kill()
        first.communicate()
    steps = [line["step"] for line in training.metrics(run)]
    assert steps == list(range(1, len(steps) + 1))


def test_what_cannot_be_sampled_is_said_before_the_first_step(config: Path) -> None:
    for name, overrides, words in (
        ("drop", ("objective.condition_drop=0",), "objective.condition_drop 0, so its null token is untrained"),
        ("null", ("objective.condition_drop=0", "model.null_token=false"), "guidance needs a null token"),
    ):
        run = config.parent / f"sample-{name}"
        said = job(config, run, "train.samples=2", *overrides, code=2)
        assert words in said and "sample.guidance=[1,1]" in said and "step 1/20" not in said and "Traceback" not in said


def test_captions_are_cut_for_samples_as_for_training(config: Path) -> None:
    run = config.parent / "long-captions"
    job(config, run, "train.samples=2", "model.text_length=4", "train.sample_every=3", "train.stop_after=3", code=75)
    assert (run / "samples" / "step-00000003" / "bits.safetensors").is_file()


def test_samples_and_validation_that_fail_cost_no_step_and_no_checkpoint(config: Path) -> None:
    """A file stands where the samples go, and the held-out shards lose their tars during the run."""
    from tests.helpers.made_shards import make

    run, held = config.parent / "aside", config.parent / "held-out"
    make(held, training.BUCKETS, salt="held-out")
    run.mkdir()
    (run / "samples").write_text("not a folder")
    for tar in held.rglob("*.tar"):
        tar.write_bytes(b"")
    said = job(config, run, "train.samples=1", f"curriculum.validation=[{held}]", "train.checkpoint_every=5")
    assert f"samples: {run}/samples" in said and "validation: " in said and said.count("training goes on") == 2
    assert "step-00000012" in checkpoints(run) and status(run)["state"] == "finished"
    assert len(training.metrics(run)) == 20


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_ends_as_a_failure_that_says_so(config: Path, tmp_path: Path) -> None:
    """A tmpfs of 1.5 MB holds some lines of metrics and no checkpoint."""
    run = tmp_path / "disk"
    run.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(run)], check=False).returncode:
        pytest.skip("no mount here")
    try:
        said = job(config, run, code=1)
        assert (
            "checkpoint of step 4 could not be written" in said
            and "step 20 is trained, but its checkpoint is not on the disk" in said
        )
        assert status(run)["state"] == "failed" and status(run)["step"] == 20 and len(training.metrics(run)) == 20
        # Room for what is written before the first step and some lines of metrics, then none at all.
        (run / "metrics.jsonl").unlink()
        (run / "ballast").write_bytes(b"\0" * (os.statvfs(run).f_bavail * os.statvfs(run).f_frsize - 28_000))
        said = job(config, run, code=1)
        assert (
            "metrics.jsonl: No space left on device; training goes on" in said
            and "step 20/20" in said
            and "Traceback" not in said
        )
        assert status(run)["state"] == "failed" and 0 < len(training.metrics(run)) < 20
        (run / "metrics.jsonl").unlink()
        (run / "more").write_bytes(b"\0" * (os.statvfs(run).f_bavail * os.statvfs(run).f_frsize))
        said = job(config, run, code=1)
        assert "config.yaml: the disk is full" in said and "Traceback" not in said
    finally:
        subprocess.run(["umount", str(run)], check=True)


def test_a_signal_stops_and_the_status_says_which(config: Path) -> None:
    run = config.parent / "signal"
    process = start(config, run, "curriculum.stages.0.steps=100000")
    training.until(process, "step 3/")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=training.PATIENCE)
    assert process.returncode == 75 and (status(run)["state"], status(run)["line"]) == ("stopped", "SIGTERM")


def test_changes_between_two_starts_are_refused_said_or_silent(config: Path) -> None:
    """Keys of every kind, as a user changes them; the table is tested in tests/pretrain/checkpoint/test_resume_rules.py."""
    run = config.parent / "changed"
    zero3 = ("deepspeed.zero_optimization.stage=3", "train.stop_after=4")
    job(config, run, *zero3, code=75)
    for change, words in (
        ("train.dtype=bfloat16", "`train.dtype` was float32 in this run and is bfloat16 now"),
        ("train.shuffle_window=2", "`train.shuffle_window` was 16 in this run and is 2 now"),
        ("curriculum.stages.0.mix.0.batch=4", "`curriculum.stages.0.mix` was"),
        ("model.layers=3", "`model.layers` was 2 in this run and is 3 now"),
    ):
        said = job(config, run, *zero3, change, code=2)
        assert words in said and "Traceback" not in said, said
    changes = (
        "model.attention=dense", "train.micro_batch=5", "train.learning_rate=0.001", "curriculum.stages.0.steps=5",
        "curriculum.stages.1.steps=3", "train.checkpoint_every=3",
    )  # fmt: skip
    said = job(config, run, "deepspeed.zero_optimization.stage=3", *changes)
    for key in ("model.attention", "train.micro_batch", "train.learning_rate", "curriculum.stages", "learning rate of step 5"):
        assert f"`{key}` was " in said, said
    assert "checkpoint_every" not in said and [line["step"] for line in training.metrics(run)] == list(range(1, 9))


def test_a_reader_of_the_console_that_goes_away_ends_no_job(config: Path) -> None:
    """Say, the launcher is killed: nobody reads what its ranks print."""
    run = config.parent / "pipe"
    process = start(config, run, "curriculum.stages.0.steps=60")
    training.until(process, "step 3/")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=training.PATIENCE) == 0
    assert status(run)["state"] == "finished" and "step 68/68" in (run / "log" / "rank-0.log").read_text()


def test_a_run_that_is_past_its_stop_trains_nothing(config: Path) -> None:
    run = config.parent / "past"
    job(config, run, "train.stop_after=5", code=75)
    said = job(config, run, "train.stop_after=3", code=75)
    assert "step 5 is trained and train.stop_after is 3" in said and checkpoints(run) == ["step-00000004", "step-00000005"]


def test_held_out_shards_of_another_tokenizer_are_refused_before_the_first_step(config: Path) -> None:
    from dataclasses import replace

    from tests.helpers.made_shards import SPEC, make

    held = make(config.parent / "other-tokenizer", training.BUCKETS, spec=replace(SPEC, digest="1" * 64))
    said = job(config, config.parent / "other", f"curriculum.validation=[{held}]", code=2)
    assert "curriculum.validation: shards of another tokenizer (111111111111)" in said and "Traceback" not in said
