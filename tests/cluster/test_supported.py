"""The ranges of Python and torch, and the CPU: one line each with the mend, at every entry point."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster import supported


def test_this_machine_is_supported() -> None:
    assert supported.problem() == ""


@pytest.mark.parametrize("found", [(3, 10), (3, 14), (2, 7)])
def test_a_python_out_of_range_is_one_line_with_the_mend(found: tuple[int, int]) -> None:
    line = supported.wrong_python(found)
    assert line.startswith(f"needs Python 3.11 to 3.13, found {found[0]}.{found[1]} (") and "make setup PYTHON=" in line
    assert "\n" not in line


@pytest.mark.parametrize("found", [(3, 11), (3, 12), (3, 13)])
def test_the_three_pythons_are_in_range(found: tuple[int, int]) -> None:
    assert supported.wrong_python(found) == ""


@pytest.mark.parametrize("version", ["2.10.0+cu128", "1.13.1", "3.0.0"])
def test_a_torch_out_of_range_is_one_line_with_the_mend(version: str) -> None:
    line = supported.wrong_torch(version)
    assert line.startswith(f"needs torch>=2.11,<3, found {version} in ") and "-m pip install 'torch>=2.11,<3'" in line


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.11.0a0+git1234", "2.13.0", "2.15.0", "2.99", "", "built-by-hand"])
def test_a_torch_in_range_or_of_unknown_version_passes(version: str) -> None:
    assert supported.wrong_torch(version) == ""


def test_the_ranges_are_those_of_the_package(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    python = SpecifierSet(project["requires-python"])
    torch = next(Requirement(text) for text in project["dependencies"] if Requirement(text).name == "torch").specifier
    for major, minor in [(3, minor) for minor in range(9, 16)]:
        assert python.contains(f"{major}.{minor}.0") == (supported.wrong_python((major, minor)) == "")
    for version in ("2.10.1", "2.11.0", "2.11.0+cu130", "2.15.0", "3.0.0"):
        assert torch.contains(version) == (supported.wrong_torch(version) == "")


def cpu(folder: Path, flags: str) -> Path:
    """What Linux says of a machine with two cores."""
    core = f"processor\t: 0\nmodel name\t: Old CPU @ 2 GHz\nflags\t\t: {flags}\nbugs\t\t: spectre avx2\n\n"
    (folder / "cpuinfo").write_text(core + core.replace(": 0", ": 1"))
    return folder / "cpuinfo"


def test_a_cpu_without_avx2_is_one_line_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supported.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv(supported.ANY_CPU, raising=False)
    line = supported.wrong_cpu(cpu(tmp_path, "fpu sse4_2 avx"))
    assert line.startswith("this CPU (Old CPU @ 2 GHz) has no AVX2") and "VIDEOAR_ANY_CPU=1" in line and "\n" not in line
    assert supported.problem(cpu(tmp_path, "fpu sse4_2 avx")) == line
    monkeypatch.setenv(supported.ANY_CPU, "1")
    assert supported.wrong_cpu(cpu(tmp_path, "fpu sse4_2 avx")) == ""


def test_other_cpus_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supported.platform, "machine", lambda: "x86_64")
    assert supported.wrong_cpu(cpu(tmp_path, "fpu sse4_2 avx avx2 fma")) == ""
    assert supported.wrong_cpu(tmp_path / "absent") == "", "no Linux"
    monkeypatch.setattr(supported.platform, "machine", lambda: "aarch64")
    assert supported.wrong_cpu(cpu(tmp_path, "fp asimd bf16")) == ""


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("import typing_extensions; sys.version_info = (3, 10, 1)", "videoar: needs Python 3.11 to 3.13, found 3.10 ("),
        ("importlib.metadata.version = lambda name: '2.9.1+cpu'", "videoar: needs torch>=2.11,<3, found 2.9.1+cpu in "),
        ("platform.machine = lambda: 'x86_64'; import cluster_cpu", "videoar: this CPU (Old CPU @ 2 GHz) has no AVX2"),
    ],
    ids=["python", "torch", "cpu"],
)
@pytest.mark.parametrize("module", ["cluster.cli.main", "pretrain.train", "pipeline.tokenizer_jobs.main"])
def test_every_entry_point_says_it_in_one_line(module: str, change: str, line: str, tmp_path: Path, root: Path) -> None:
    described = str(cpu(tmp_path, "fpu sse4_2 avx"))
    (tmp_path / "cluster_cpu.py").write_text(
        "from pathlib import Path\nreal = Path.open\n"
        f"Path.open = lambda self, *rest, **more: real(Path({described!r}) if str(self) == '/proc/cpuinfo' else self, *rest, **more)\n"
    )
    code = f"import importlib.metadata, platform, sys\n{change}\nimport {module}"
    env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}
    env.pop(supported.ANY_CPU, None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1, done.stderr
