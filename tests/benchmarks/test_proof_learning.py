"""The proof's configuration of every data set can be loaded, and says what its recipe says."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from cluster.config import load
from tokenizer.config import TokenizerConfig

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))  # as when the script is run
    yield importlib.import_module("proof_learning")
    sys.modules.pop("proof_learning")


def test_each_data_set_has_a_recipe_and_the_command_line_comes_last(proof: ModuleType) -> None:
    assert proof.RECIPES.keys() == proof.RATES.keys()
    made = {
        name: load(FOLDER / "proof_learning.yaml", list(recipe)).get(TokenizerConfig) for name, recipe in proof.RECIPES.items()
    }
    assert made["moving-mnist"].training.quantization_ramp == 300
    assert made["freeway"].loss.hardest == 0.05 and made["freeway"].training.quantization_ramp == 1000
    assert made["weizmann"].training.augment.zoom == 2 and made["weizmann"].training.mirror
    assert [each.training.quantizer_dropout for each in made.values()] == [0.5, 0.5, 0.0]
    words = [*proof.RECIPES["freeway"], "tokenizer.loss.hardest=0.5"]
    assert load(FOLDER / "proof_learning.yaml", words).get(TokenizerConfig).loss.hardest == 0.5


def test_a_bar_without_its_score_does_not_hold(proof: ModuleType) -> None:
    def scores(fvd: float | None, lpips: float) -> dict[str, object]:
        made = None if fvd is None else {"mean": fvd}
        return {
            "prediction": {
                "model": {"psnr": {"mean": 20.0}, "lpips_alex": {"mean": lpips}},
                "copy_last_frame": {"psnr": {"mean": 19.0}, "lpips_alex": {"mean": 0.2}},
            },
            "samples": {"fvd": made},
            "references": {"shuffled": {"fvd": {"mean": 300.0}}, "frozen": {"fvd": {"mean": 200.0}}},
        }

    assert set(proof.verdict(scores(100.0, 0.1)).values()) == {True}
    assert proof.verdict(scores(250.0, 0.3)) == {
        "psnr_above_copying": True,
        "lpips_below_copying": False,
        "fvd_below_shuffled": True,
        "fvd_below_frozen": False,
    }
    assert proof.verdict(scores(None, 0.1))["fvd_below_frozen"] is False


@pytest.mark.system
def test_a_series_that_is_stopped_stops_its_command(tmp_path: Path) -> None:
    """Of the ablation's series too: a training that went on alone was found beside the next one."""
    code = "import sys, time; from pathlib import Path; from proof_learning import Series; "
    code += "Series(Path(sys.argv[1]), time.monotonic() + 600).run('pages', 'monitor', sys.argv[1], '--port', '0')"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=FOLDER, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 75 and "`pages` was stopped: start again to go on" in said
        assert children and not any(child.is_running() for child in children)
    finally:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    assert not (tmp_path / "done" / "pages").exists()
