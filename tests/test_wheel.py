"""The wheel: what is in it, what pip would replace for it, and that it works where there is no clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster.runtime.source_tree import PACKAGES

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that the clone is not written to."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "configs"):
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    words = [*PIP, "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(out), str(copy)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(out.glob("videoar_pretrain-*.whl"))


def test_it_holds_all_that_runs_and_nothing_of_the_tests(wheel: Path, root: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"cluster/recipes/{path.name}" for path in (root / "configs").iterdir()}
    for folder in ("cluster/slurm", "cluster/kubernetes", "cluster/monitor/static", "cluster/monitoring/templates"):
        wanted |= {path.relative_to(root).as_posix() for path in (root / folder).iterdir() if path.is_file()}
    for package in PACKAGES:
        wanted |= {path.relative_to(root).as_posix() for path in (root / package).rglob("*.py")}
    assert wanted <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)


def test_no_torch_in_range_is_replaced_by_it(wheel: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = [*PIP, "install", "--quiet", "--no-index", "--dry-run", "--force-reinstall", "--no-deps", "--report", str(report)]
    subprocess.run([*words, str(wheel)], check=True, capture_output=True, timeout=300)
    described = json.loads(report.read_text())["install"][0]["metadata"]
    assert [line for line in described["requires_dist"] if line.startswith("torch")] == ["torch<3,>=2.11"]
    # With an index that has nothing, pip can only keep what is installed: it would fail if it wanted another torch.
    words = [*PIP, "install", "--quiet", "--no-index", "--dry-run", "--report", str(report), "--upgrade", str(wheel)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=without_links())
    assert done.returncode == 0, done.stderr
    assert {item["metadata"]["name"] for item in json.loads(report.read_text())["install"]} <= {"videoar-pretrain"}


def without_links() -> dict[str, str]:
    """The environment, without wheels that pip has been told of by folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}


def test_it_works_outside_the_clone(wheel: Path, tmp_path: Path, root: Path) -> None:
    installed, outside = tmp_path / "installed", tmp_path / "outside"
    outside.mkdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(installed)
    env = {**os.environ, "PYTHONPATH": str(installed)}

    def videoar(*words: str) -> str:
        code = "import sys; from cluster.cli.main import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=outside, env=env, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [sys.executable, "-c", "import cluster; print(cluster.__file__)"]
    found = subprocess.run(where, cwd=outside, env=env, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(installed)
    assert "no clone" in videoar("--version")
    assert "videoar_4b" in videoar("init", "--list")
    videoar("init", "mine", "--recipe", "demo")
    for path in (outside / "mine").rglob("*"):
        if path.is_file():
            source = "configs" if path.parent.name == "mine" else f"cluster/{path.parent.name}"
            assert path.read_bytes() == (root / source / path.name).read_bytes()
    assert "--minutes" in videoar("demo", "--help")
