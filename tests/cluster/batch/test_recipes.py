"""Recipes are listed, copied with their companions, and never overwrite."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.batch import recipes
from cluster.config import ConfigError, load


def test_every_recipe_is_listed_with_a_sentence() -> None:
    found = recipes.recipes()
    assert {"demo", "train_cpu", "ucf101", "videoar_l", "videoar_xl", "videoar_4b"} <= found.keys()
    assert all(10 < len(text) < 80 for text in found.values())


@pytest.mark.parametrize("name", sorted(recipes.recipes()))
def test_a_copied_recipe_is_the_recipe_and_its_commands_name_the_copy(name: str, tmp_path: Path) -> None:
    written, commands = recipes.copy(name, tmp_path / "new" / "folder")
    assert written[0] == tmp_path / "new" / "folder" / f"{name}.yaml"
    assert load(written[0]).plain() == load(Path(recipes.__file__).parents[1] / "recipes" / f"{name}.yaml").plain()
    assert (tmp_path / "new/folder/slurm/train.sbatch") in written
    assert (tmp_path / "new/folder/kubernetes/rayjob-tokenize.yaml") in written
    assert all(path.is_file() for path in written)
    assert all("configs/" not in line for line in commands)
    assert not commands or any(str(written[0]) in line for line in commands)
    assert commands or name == "demo", "only the demo is run by a command of its own"


def test_the_demo_comes_with_its_captions(tmp_path: Path) -> None:
    written, _ = recipes.copy("demo", tmp_path)
    assert tmp_path / "demo_captions.csv" in written


def test_nothing_is_overwritten_and_nothing_is_half_written(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "train.sbatch").write_text("mine")
    with pytest.raises(ConfigError, match=r"train\.sbatch exists, and nothing is overwritten"):
        recipes.copy("ucf101", tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["train.sbatch"]


def test_an_unknown_recipe_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe ucf102; there are demo, .*videoar_xl"):
        recipes.copy("ucf102", tmp_path)
