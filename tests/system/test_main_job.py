"""The main job at its smallest, through its real components: the demo's own steps on real video.

Real Ray with a real `ray job submit`, the real deepspeed launcher with two ranks under ZeRO-3, a real scrape of the
metrics port. One demo serves all tests of this file, since each start of these programs costs 10 to 20 s.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import webdataset
from prometheus_client.parser import text_string_to_metric_families

from cluster.tables.table_folder import TableFolder

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SMALL = (
    "tokenizer.training.steps=3",
    "tokenizer.network.width=8",
    "tokenizer.training.buckets=[{frames: 5, height: 32, width: 32, batch: 2}]",
    "pipeline.buckets=[{frames: 5, height: 32, width: 32}, {frames: 9, height: 48, width: 48}]",
    "pipeline.clip_stride=1.0",
    "pipeline.clips_per_shard=4",
    "model.layers=2",
    "model.width=64",
    "model.heads=2",
    "curriculum.stages=["
    "{name: short, steps: 4, mix: [{bucket: f005x32x32, frames: 1, batch: 3}, {bucket: f005x32x32, batch: 3}]},"
    "{name: long, steps: 3, mix: [{bucket: f009x48x48, batch: 3}]}]",
    "train.checkpoint_every=100",
    "train.samples=2",
)


@dataclass
class Demo:
    out: Path
    config: Path
    videos: Path
    log: str

    def steps(self, run: Path | None = None) -> list[dict[str, Any]]:
        lines = ((run or self.out) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def videoar(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "videoar"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("main-job")
    videos = folder / "videos"
    videos.mkdir()
    for name in ("carphone_pristine.mp4", "bikes.mp4"):
        shutil.copy(clips / name, videos)
    # A broken video among good ones: its header is whole, its middle is gone.
    whole = (clips / "bigbuckbunny.mp4").read_bytes()
    (videos / "broken.mp4").write_bytes(whole[: len(whole) // 40])
    (videos / "notes.txt").write_text("not a video")
    out = folder / "out"
    done = videoar("demo", "--out", str(out), "--videos", str(videos), *SMALL)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    yield Demo(out, out / "demo.yaml", videos, done.stdout + done.stderr)


def test_each_step_is_a_real_command_that_is_printed(demo: Demo) -> None:
    for command in (
        "ray job submit --address http://127.0.0.1:",
        "videoar tokenizer train",
        "videoar launch",
        "videoar sample",
    ):
        assert f"$ {command}" in demo.log
    assert "--module pretrain.train" in demo.log, "the deepspeed launcher's own command is printed"
    assert str(demo.out / "report.html") in demo.log


def test_shards_hold_both_buckets_and_every_input_has_one_outcome(demo: Demo) -> None:
    shards = demo.out / "shards"
    rows = [row for table in TableFolder.open(shards / "index").tables() for row in table.to_pylist()]
    buckets = {row["shard"].split("/")[0] for row in rows}
    assert buckets == {"f005x32x32", "f009x48x48"}
    assert {Path(row["source"]).name for row in rows} == {"carphone_pristine.mp4", "bikes.mp4"}
    rejects = [row for table in TableFolder.open(shards / "rejects").tables() for row in table.to_pylist()]
    assert [(Path(row["source"]).name, row["stage"]) for row in rejects if row["begin"] is None] == [("broken.mp4", "probe")]
    tars = sorted(str(path) for path in shards.glob("*/shard-*.tar"))
    read = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert sorted(sample["__key__"] for sample in read) == sorted(row["key"] for row in rows)
    assert all({"json", "bits.zst", "txt"} <= set(sample) for sample in read)


def test_training_goes_through_both_stages_and_resumes_once(demo: Demo) -> None:
    steps = demo.steps()
    assert [step["step"] for step in steps] == list(range(1, 8)), "no step is missing and none stands twice"
    assert [step["stage_name"] for step in steps] == ["short"] * 4 + ["long"] * 3
    assert {step["bucket"] for step in steps[:4]} == {"f001x32x32", "f005x32x32"}, "joint images and videos"
    assert {step["bucket"] for step in steps[4:]} == {"f009x48x48"}
    for step in steps:
        assert len(step["sample_ids"]) == 3, "a global batch of 3 on 2 ranks is not cut or doubled"
        assert 0 < step["loss"] < 5 and all(0 <= value <= 1 for value in step["bit_accuracy"].values())
    done = sorted(path.parent.name for path in (demo.out / "checkpoints").glob("step-*/DONE"))
    assert done == ["step-00000003", "step-00000004", "step-00000007"], "where it was stopped, and at the end of each stage"


def test_the_metrics_port_was_scraped_while_it_trained(demo: Demo) -> None:
    families = {family.name: family for family in text_string_to_metric_families((demo.out / "metrics-scrape.txt").read_text())}
    assert families["videoar_train_step"].samples[0].value >= 1
    assert {sample.labels["scale"] for sample in families["videoar_train_scale_loss"].samples} >= {"1x1", "2x2"}
    assert families["videoar_train_tokens"].samples[0].value > 0


def test_a_resumed_run_equals_an_undisturbed_one_to_the_last_digit(demo: Demo) -> None:
    other = demo.out.parent / "undisturbed"
    done = videoar("launch", "-c", str(demo.config), f"run.dir={other}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    exact = ("step", "loss", "scale_loss", "bit_accuracy", "grad_norm", "learning_rate", "sample_ids", "frame_loss")
    for mine, theirs in zip(demo.steps(), demo.steps(other), strict=True):
        assert {key: mine[key] for key in exact} == {key: theirs[key] for key in exact}


def test_samples_and_continuation_are_playable_videos(demo: Demo) -> None:
    from pipeline.video import probe

    in_loop = sorted(path.parent.name for path in (demo.out / "samples").glob("step-*/*.mp4"))
    assert in_loop == ["step-00000004"] * 2 + ["step-00000007"] * 2, "made by all ranks under ZeRO-3, at each stage's end"
    texts = sorted((demo.out / "samples" / "text").glob("*.mp4"))
    continued = sorted((demo.out / "samples" / "continuation").glob("*.mp4"))
    assert texts and continued
    for path in (texts[0], continued[0], *sorted((demo.out / "reconstruction").glob("*.mp4"))[:1]):
        assert probe(path).frames >= 5


def test_run_again_it_resumes_and_does_not_start_anew(demo: Demo) -> None:
    before = {path: path.stat().st_mtime_ns for path in (demo.out / "shards").rglob("*.tar")}
    metrics = (demo.out / "metrics.jsonl").read_bytes()
    weights = (demo.out / "tokenizer" / "tokenizer.safetensors").stat().st_mtime_ns
    done = videoar("demo", "--out", str(demo.out), "--videos", str(demo.videos), *SMALL)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in (demo.out / "shards").rglob("*.tar")} == before
    assert (demo.out / "metrics.jsonl").read_bytes() == metrics
    assert (demo.out / "tokenizer" / "tokenizer.safetensors").stat().st_mtime_ns == weights
    assert "ray job submit" not in done.stdout


def test_a_second_demo_in_the_same_folder_is_refused_and_says_who_holds_it(demo: Demo) -> None:
    with (demo.out / ".demo-lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write("4242")
        file.flush()
        refused = videoar("demo", "--out", str(demo.out), "--videos", str(demo.videos), *SMALL)
    assert refused.returncode == 1
    assert "a demo is already running here (4242)" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_another_configuration_in_the_same_folder_is_refused_with_the_difference(demo: Demo) -> None:
    refused = videoar("demo", "--out", str(demo.out), "--videos", str(demo.videos), *SMALL, "model.layers=3")
    assert refused.returncode == 1
    assert "another configuration (changed: model.layers)" in refused.stderr


def test_a_metrics_port_in_use_is_one_clear_line(demo: Demo) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = demo.out.parent / "port"
        refused = videoar("launch", "-c", str(demo.config), f"run.dir={run}", f"metrics.port={port}", "cluster.max_restarts=0")
    assert refused.returncode not in (0, 75)
    text = refused.stdout + refused.stderr
    assert f"metrics port 127.0.0.1:{port}" in text and "set metrics.port to a free port" in text


def test_clear_lines_for_folders_that_hold_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in (("empty", "contains no video file"), ("absent", "no such folder")):
        refused = videoar("demo", "--out", str(tmp_path / "out"), "--videos", str(tmp_path / folder))
        assert refused.returncode == 1
        assert message in refused.stderr and "Traceback" not in refused.stderr
