"""Exported models read back: without DeepSpeed, and with one line for each thing that can be wrong with the files.

That the weights are the trained ones is tested in tests/system/test_training.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from pretrain.checkpoint.export import ExportError, describe, load_model
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from tests.helpers.made_shards import SPEC

MODEL = ModelConfig(layers=1, width=16, heads=2, text_length=12)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    save_file(VideoAR(MODEL, SPEC.bits, 256).state_dict(), tmp_path / "model.safetensors")
    plain = {
        "format": 1, "model": MODEL.model_dump(mode="json"), "objective": ObjectiveConfig().model_dump(mode="json"),
        "tokenizer": SPEC.plain(), "step": 1, "averaged": False,
    }  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(plain))
    return tmp_path


def test_a_model_is_loaded_without_deepspeed(exported: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['deepspeed'] = None\n"  # its import now raises
        "from pretrain.checkpoint.export import load_model\n"
        "print(sum(each.numel() for each in load_model(sys.argv[1]).parameters()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(each.numel() for each in load_model(exported).parameters())


def replace(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        plain = json.loads((folder / name).read_text())
        change(plain)
        (folder / name).write_text(json.dumps(plain))

    return act


@pytest.mark.parametrize(
    ("ruin", "words"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "model.safetensors does not fit model.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors does not fit model.json"),
        (lambda folder: (folder / "model.json").write_text("[]"), "no exported model here"),
        (lambda folder: (folder / "model.json").write_bytes(b"\xff{"), "no exported model here"),
        (replace("model.json", lambda plain: plain.update(format=9)), "format 9, this program reads format 1"),
        (
            replace("model.json", lambda plain: plain["model"].update(width="wide")),
            r"model\.json: `width`: Input should be a valid",
        ),  # type: ignore[attr-defined]
        (replace("model.json", lambda plain: plain["model"].update(colour=1)), r"model\.json: `colour`: Extra inputs"),  # type: ignore[attr-defined]
        (replace("model.json", lambda plain: plain.update(trained={"name": "a"})), "no exported model here"),
    ],
)
def test_what_is_wrong_with_the_files_is_one_line(exported: Path, ruin: Callable[[Path], object], words: str) -> None:
    assert describe(exported).trained is None, "an export of an earlier version"
    ruin(exported)
    with pytest.raises(ExportError, match=words) as caught:
        load_model(exported)
    assert "\n" not in str(caught.value)
