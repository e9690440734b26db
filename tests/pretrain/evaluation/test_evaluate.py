"""`videoar eval` as a user runs it: all scores, again without new work, and one line for what cannot be scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.config import Config, RunConfig
from tests.helpers import eval_job
from tests.helpers.tools import unfetched
from tests.helpers.training import ROOT
from tokenizer.evaluation.pretrained import SOURCES, cache

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
SMALL = ("--clips", "3", "--seeds", "2", "--drift-clips", "2", "--length", "2", "--bucket", eval_job.BUCKET.name)


def videoar(job: Config, output: Path, *words: str, weights: Path, name: str = "c.yaml") -> subprocess.CompletedProcess[str]:
    config = job.get(RunConfig).dir.parent / name
    command = [sys.executable, "-m", "cluster.cli.main", "eval", "-c", str(config), "--output", str(output), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VIDEOAR_CACHE": str(weights), "OMP_NUM_THREADS": "2"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A cache of its own, with the public weights that were fetched, so that features are computed anew."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for path in cache().glob("*.*"):
        (folder / path.name).symlink_to(path)
    return folder


def test_all_scores_and_again_without_new_work(job: Config, tmp_path: Path, weights: Path) -> None:
    if unfetched(*SOURCES):
        pytest.skip("scoring networks not fetched (`make setup` fetches them)")
    output = tmp_path / "out"
    done = videoar(job, output, *SMALL, weights=weights)
    assert done.returncode == 0, done.stdout + done.stderr
    last, scores = json.loads(done.stdout.splitlines()[-1]), json.loads((output / "scores.json").read_text())
    assert last["fvd"] == scores["samples"]["fvd"]["mean"] > 0 and len(scores["samples"]["fvd"]["seeds"]) == 2
    assert scores["references"]["of"] == "other clips" and set(scores["references"]) >= {
        "real",
        "shuffled",
        "frozen",
        "tokenizer",
    }
    assert scores["references"]["real"]["frechet_vgg16_frames"]["mean"] < scores["samples"]["frechet_vgg16_frames"]["mean"]
    assert scores["references"]["frozen"]["motion"]["mean"] == 0
    assert scores["prediction"]["model"].keys() == {"psnr", "ssim", "lpips_alex"}
    assert scores["continued"]["model"]["fvd"]["mean"] == last["continued_fvd"] < last["fvd"]  # half of each clip is real
    assert [segment["frames"] for segment in scores["drift"]] == [[0, 9], [9, 18]]
    assert scores["speed"]["steps_per_clip"] == last["steps_per_clip"] == 3 * len(scores["bits"]["by_scale"])
    assert any("too few clips for FVD without its bias: 16" in note for note in scores["notes"])
    assert scores["samples"]["fvd_extrapolated"] is None
    assert (output / "plots.png").stat().st_size > 5000 and (output / "sheet.png").stat().st_size > 5000
    green = (np.asarray(Image.open(output / "sheet.png")) == (0, 160, 0)).all(2).any(1)
    assert green.reshape(9, -1).any(1).tolist() == [True, False, True] * 3, "samples from text were given no frame"
    before = {
        path: path.stat().st_mtime_ns for folder in (output / "videos", weights / "features") for path in folder.iterdir()
    }
    again = videoar(job, output, *SMALL, weights=weights)
    assert again.returncode == 0 and json.loads((output / "scores.json").read_text()) == scores
    after = {path: path.stat().st_mtime_ns for folder in (output / "videos", weights / "features") for path in folder.iterdir()}
    assert after == before
    other = videoar(job, output, *SMALL, "sample.seed=9", weights=weights)
    (line,) = [line for line in other.stderr.splitlines() if line.startswith("videoar: ")]
    assert other.returncode == 2 and "holds the evaluation of something else (sample.seed: 0 -> 9)" in line


def test_a_trained_run_without_the_networks_in_two_shares_and_what_is_refused(job: Config, tmp_path: Path) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out"
    trained, small = (
        eval_job.train(job.get(RunConfig).dir.parent).name,
        SMALL[:-2],
    )  # its own shape is the one that it was trained on
    share = videoar(job, out, *small, "--part", "0/2", weights=empty, name=trained)
    assert share.returncode == 0 and not (out / "scores.json").exists(), share.stderr
    made = {path: path.stat().st_mtime_ns for path in (out / "videos").iterdir()}
    done = videoar(job, out, *small, "--batch", "2", weights=empty, name=trained)
    assert done.returncode == 2 and "request.batch: 4 -> 2" in done.stderr
    done = videoar(job, out, *small, weights=empty, name=trained)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in made.items())
    scores = json.loads((out / "scores.json").read_text())
    assert scores["bucket"] == eval_job.BUCKET.name and scores["bits"]["loss"] < 0.65  # ln 2 = 0.693 is what no training gives
    assert scores["samples"]["fvd"] is None and scores["samples"]["motion"]["mean"] > 0
    assert any("weights not fetched: i3d, lpips-vgg, lpips-alex" in note for note in scores["notes"])
    for words, message in (
        (("--bucket", "f017x64x64"), "0 clips of f017x64x64 or longer"),
        ((*SMALL, "curriculum.validation=[nowhere]"), "nowhere: no such folder"),
        ((*SMALL, "--part", "2/2"), "write I/N"),
        ((*SMALL, "--known", "4"), "--known 4: predictions take 1 + 4n frames"),
    ):
        refused = videoar(job, tmp_path / "refused", *words, weights=empty)
        lines = [line for line in refused.stderr.splitlines() if line.startswith("videoar: ")]
        assert refused.returncode == 2 and len(lines) == 1 and message in lines[0], refused.stderr
