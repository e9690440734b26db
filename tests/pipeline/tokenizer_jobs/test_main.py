"""The process of the tokenizer's jobs: scores as JSON, exit codes, and what is said of an error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.supervise.processes import runs_module
from pipeline.tokenizer_jobs.main import main
from tests.helpers.training import until
from tokenizer.codec import VideoCodec


def test_evaluate_writes_the_scores(
    config: Path, tmp_path: Path, scoring_networks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "scores.json"
    assert main(["evaluate", "-c", str(config), "--clips", "2", "--json", str(report)]) == 0
    scores = json.loads(report.read_text())["f009x32x48"]
    assert scores["clips"] == 2
    spec = VideoCodec.load(tmp_path / "tokenizer").spec
    assert scores["bits_per_frame"] == pytest.approx(8 * spec.frame_bytes(4, 6) * 3 / 9)
    assert set(scores["bit_usage"]) >= {"1x1", "4x6"}
    assert 3 < scores["psnr"] < 30
    assert scores["encode_frames_per_second"] > 0
    assert scores["rfvd"] > 0 and scores["lpips_alex"] > 0 and scores["lpips_vgg"] > 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["name"] == "tokenizer"


def test_errors_are_one_line_with_an_exit_code(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-c", str(config), "tokenizer.training.stepz=3"]) == 2
    assert "did you mean `steps`" in capsys.readouterr().err
    absent = f"tokenizer.weights={tmp_path / 'absent'}"
    assert main(["--local_rank=0", "evaluate", "-c", str(config), absent]) == 2
    assert "no tokenizer there" in capsys.readouterr().err
    assert (
        main(["reconstruct", "-c", str(config), "tokenizer.training.fps=4", "nowhere.mp4", "--output", str(tmp_path / "x.mp4")])
        == 1
    )
    assert "nowhere.mp4" in capsys.readouterr().err
    assert main(["evaluate", "-c", str(config), f"corpus.videos=[{tmp_path / 'none'}]"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


WRONG_SHAPE = """
import sys
import numpy as np
from cluster.runtime.process_group import leave
from pipeline.tokenizer_jobs import main as job
job.ClipSampler.clip = lambda self, step, number, bucket: np.zeros((bucket.frames, bucket.height, bucket.width, 4), np.uint8)
leave(job.main(sys.argv[1:]))
"""


def test_an_error_that_is_not_ours_leaves_its_traceback_on_stderr_and_in_the_log(
    config: Path, root: Path, tmp_path: Path
) -> None:
    """Four colours where the network takes three (12 and 16 after folding): a bug, as far as a user can tell."""
    words = ["train", "-c", str(config), f"tokenizer.weights={tmp_path / 'new'}", "metrics.enabled=false"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-c", WRONG_SHAPE, *words]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    log = (tmp_path / "log" / "tokenizer-rank-0.log").read_text()
    for text in (done.stderr, log):
        assert "Traceback (most recent call last)" in text and "tokenizer/training/train.py" in text, text
        assert "12 channels, but got 16" in text.splitlines()[-1] and text.splitlines()[-1].startswith(
            "error: RuntimeError: "
        ), text


def test_an_error_of_a_training_rank_is_one_line_there_and_in_its_log(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    absent = [f"corpus.videos=[{tmp_path / 'none.mp4'}]", f"tokenizer.weights={tmp_path / 'new'}"]
    assert main(["--local_rank=3", "train", "-c", str(config), *absent]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: rank 3: ") and "none.mp4" in line
    assert (tmp_path / "log" / "tokenizer-rank-3.log").read_text() == line + "\n"


@pytest.mark.system
def test_training_that_is_stopped_ends_with_75_and_goes_on_from_its_checkpoint(
    config: Path, root: Path, tmp_path: Path
) -> None:
    """The first stop is a polite one. At the second, the rank hangs: the launch looked for checkpoints of the transformer, and ended with 1."""
    words = ["tokenizer", "train", "-c", str(config), f"tokenizer.weights={tmp_path / 'new'}", "metrics.enabled=false"]
    words += ["tokenizer.training.steps=100000", "tokenizer.training.checkpoint_every=1", "tokenizer.training.log_every=1"]
    command = [sys.executable, "-m", "cluster.cli.main", *words, "cluster.stop_grace_seconds=15"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONUNBUFFERED": "1"}
    checkpoints = tmp_path / "tokenizer-checkpoints"
    for hangs in (False, True):
        with subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as job:
            said = until(job, "PSNR")
            if hangs:
                below = psutil.Process(job.pid).children(recursive=True)
                (rank,) = [each for each in below if runs_module(each, "pipeline.tokenizer_jobs.main")]
                rank.suspend()
            job.terminate()
            rest, _ = job.communicate(timeout=300)
        assert job.returncode == 75, said + rest
        wanted = r"the same command continues from step-(\d+)" if hangs else r"stopped after step (\d+) \(SIGTERM\)"
        found = re.search(wanted, rest)
        assert found and (checkpoints / f"step-{int(found[1]):08d}").is_dir(), said + rest
        assert ("resuming at step" in said) == hangs, said
