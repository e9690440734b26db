"""The comparison of variants: what each sets, and what is made of their scores."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from cluster.config import load
from pretrain.engine.config import TrainConfig
from pretrain.model.config import ModelConfig
from pretrain.objective.config import ObjectiveConfig

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))  # as when the script is run
    yield importlib.import_module("proof_ablation")
    for name in ("proof_ablation", "proof_learning"):
        sys.modules.pop(name)


def test_every_variant_is_a_configuration_that_builds_on_the_one_it_names(proof: ModuleType, tmp_path: Path) -> None:
    plan = yaml.safe_load((FOLDER / "proof_ablation.yaml").read_text())
    base = yaml.safe_load((FOLDER / "proof_learning.yaml").read_text())
    made = {}
    for number, name in enumerate(plan["variants"]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(proof.configured(base, plan["common"], proof.keys_of(name, plan["variants"]))))
        made[name] = load(path)
        assert made[name].get(ModelConfig).layers == plan["common"]["model"]["layers"]
        assert made[name].get(ModelConfig).text_length == base["model"]["text_length"], "what `common` does not name stays"
        assert made[name].get(TrainConfig).learning_rate == float(base["train"]["learning_rate"])
    parts = {name: (config.get(ModelConfig), config.get(ObjectiveConfig)) for name, config in made.items()}
    assert [model.rope for model, _ in parts.values()] == ["flat", *["multiscale"] * 7]
    assert [objective.flip_max for _, objective in parts.values()] == [0, 0, 0.1, 0.1, 0.1, 0.02, 0.1, 0]
    assert [objective.flip_inherit for _, objective in parts.values()] == [False, False, False, True, True, True, True, False]
    assert [objective.frame_mask for _, objective in parts.values()] == [0, 0, 0, 0, 0, 0, 0.1, 0]
    assert [model.order for model, _ in parts.values()] == [*["scales"] * 7, "tokens"]
    assert [model.previous_frame for model, _ in parts.values()] == [*["first_scale"] * 4, "every_scale", *["first_scale"] * 3]


def _scores(fvd: float | None, last: float) -> dict[str, Any]:
    sets = {
        "fvd": None if fvd is None else {"mean": fvd},
        "kvd": {"mean": 1.0},
        "frechet_vgg16_frames": {"mean": 2.0},
    }
    return {
        "samples": sets,
        "continued": {"model": {"fvd": {"mean": 50.0}}},
        "drift": [{"frechet_vgg16_frames": {"mean": value}} for value in (2.0, 3.0, last)],
        "prediction": {"model": {"psnr": {"mean": 20.0}, "lpips_alex": {"mean": 0.1}}},
        "bits": {"loss": 0.4},
        "speed": {"steps_per_clip": 30, "seconds_per_clip": 0.5},
    }


def test_differences_are_paired_by_seed(proof: ModuleType, tmp_path: Path) -> None:
    found = {
        "baseline": {seed: proof.figures(_scores(fvd, 9.0)) for seed, fvd in ((1, 100.0), (2, 200.0), (3, 300.0))},
        "idea": {seed: proof.figures(_scores(fvd, 5.0)) for seed, fvd in ((1, 90.0), (2, 191.0), (3, 289.0))},
    }
    rows = proof.summary(found, {"baseline": {"paper": 96.04}, "idea": {}})
    assert rows["idea"]["fvd"]["mean"] == pytest.approx(190)
    less = rows["idea"]["fvd"]["from_first"]
    assert less["mean"] == pytest.approx(-10)
    low, high = less["interval"]
    assert -13 < low < high < -7, "each seed gained ten: outside of the interval, though the seeds differ by hundreds"
    assert rows["idea"]["drift"]["mean"] == pytest.approx(3.0) and rows["baseline"]["drift"]["mean"] == pytest.approx(7.0)
    text = proof.table(rows, {"shuffled": 880.0})
    assert "| baseline | 200 ± 248 |" in text and "96.04" in text and "shuffled 880" in text and "| -10.0 ± 2.5 |" in text
    proof.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_a_score_whose_network_is_not_here_is_left_open(proof: ModuleType) -> None:
    rows = proof.summary({"baseline": {1: proof.figures(_scores(None, 9.0))}}, {"baseline": {}})
    assert rows["baseline"]["fvd"]["mean"] != rows["baseline"]["fvd"]["mean"]
    assert "nan" in proof.table(rows, {})


def test_seeds_of_an_earlier_comparison_count_too(proof: ModuleType, tmp_path: Path) -> None:
    for folder, fvd in (("my-idea-4", 100.0), ("my-idea-5", 110.0), ("my-idea-two-4", 900.0)):
        path = tmp_path / folder / "scores" / "scores.json"
        path.parent.mkdir(parents=True)
        path.write_text(
            json.dumps({**_scores(fvd, 9.0), "references": {"of": "other clips", "frozen": {"fvd": {"mean": 900.0}}}})
        )
    first = proof.report(tmp_path, ["my idea"], {"my idea": {}})
    assert first["my idea"]["fvd"] == 105
    values = json.loads((tmp_path / "ablation.json").read_text())["values"]
    (tmp_path / "my-idea-4" / "scores" / "scores.json").unlink()
    assert proof.report(tmp_path, ["my idea"], {"my idea": {}})["my idea"]["fvd"] == 110
    assert proof.report(tmp_path, ["my idea"], {"my idea": {}}, [values]) == first
    assert "frozen 900" in (tmp_path / "ablation.md").read_text()
    for each in values["my idea"].values():
        del each["continued"]  # as before clips were continued
    assert proof.report(tmp_path, ["my idea"], {"my idea": {}}, [values]) == first
