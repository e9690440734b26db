"""setup.sh chooses among the interpreters that are there, keeps a torch that is there, and says in one line why it cannot.

The interpreters are stand-ins that answer what setup.sh asks; it is stopped at its check of the free disk space, before it builds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster import supported

TOOLS = ("sh", "dirname", "df", "awk", "grep", "uname", "id", "rm", "tail", "cat", "env", "cp", "mkdir", "touch")
STOPPED = "MB free on this disk"
PYTHON = """#!/bin/sh
case "$2" in
  *version_info*) echo {version} ;;
  *version*torch*) [ -n "{torch}" ] && echo {torch} || exit 1 ;;
  *ensurepip*) exit {venv} ;;
  *) exit 9 ;;
esac
"""
BUILDS = """#!/bin/sh
case "$2" in
  *version_info*) echo 3.12 ;;
  *version*torch*) echo 2.11.0+cu130 ;;
  venv) for place in "$@"; do :; done; echo "$@" >made; mkdir -p "$place/bin" && cp "$0" "$place/bin/python" ;;
  pip) echo "$@" >>pip ;;
  tokenizer.evaluation.fetch) ;;
  *) exit 9 ;;
esac
"""


class Machine:
    """A folder with a copy of setup.sh and a PATH on which nothing but a few tools and the stand-ins lie."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:  # called by their path, never linked: nothing here may reach the real programs
            found = shutil.which(tool)
            assert found is not None
            self.script(self.bin / tool, f'#!/bin/sh\nexec {found} "$@"\n')
        shutil.copy(root / "setup.sh", folder)
        (folder / "cpuinfo").write_text("flags : fpu avx avx2\n")

    def script(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not path.is_symlink() and path.resolve().is_relative_to(self.folder.resolve())
        path.write_text(text)
        path.chmod(0o755)
        return path

    def python(self, name: str, version: str, *, torch: str = "", venv: bool = True) -> Path:
        return self.script(self.bin / name, PYTHON.format(version=version, torch=torch, venv=0 if venv else 1))

    def setup(self, **env: str) -> tuple[str, str]:
        """Run setup.sh to where it would build; returns stdout and the one line of stderr."""
        given = {"PATH": str(self.bin), "SETUP_MIN_FREE_KB": str(10**12), "SETUP_CPUINFO": str(self.folder / "cpuinfo"), **env}
        done = subprocess.run(["sh", "setup.sh"], cwd=self.folder, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("setup: "), done.stderr
        return done.stdout, done.stderr


@pytest.fixture
def machine(tmp_path: Path, root: Path) -> Machine:
    return Machine(tmp_path, root)


def test_the_newest_python_in_range_that_makes_environments_is_taken(machine: Machine) -> None:
    machine.python("python3.13", "3.13", venv=False)
    machine.python("python3.12", "3.12")
    machine.python("python3.11", "3.11")
    machine.python("python3", "3.14")
    printed, error = machine.setup()
    assert printed == f"setup: Python 3.12 ({machine.bin / 'python3.12'})\n" and STOPPED in error


def test_python3_is_taken_when_its_version_is_in_range(machine: Machine) -> None:
    machine.python("python3", "3.13", venv=False)
    printed, error = machine.setup()
    assert printed.startswith("setup: Python 3.13 (") and STOPPED in error, "Debian's python3-venv is installed later"


def test_an_environment_that_was_begun_is_continued(machine: Machine) -> None:
    machine.python("python3.13", "3.13")
    machine.python("../.venv/bin/python", "3.11")
    printed, error = machine.setup()
    assert printed == "setup: Python 3.11 (.venv/bin/python)\n" and STOPPED in error
    _, error = machine.setup(PYTHON="python3.13")
    assert ".venv is of Python 3.11, asked for is 3.13; delete .venv first" in error


def test_no_python_in_range_is_one_line(machine: Machine) -> None:
    machine.python("python3", "3.10")
    _, error = machine.setup()
    assert "none of Python 3.11, 3.12 and 3.13 was found; install one" in error


@pytest.mark.parametrize(("version", "words"), [("3.14", "is Python 3.14, and"), ("2.7", "is Python 2.7, and")])
def test_a_named_python_out_of_range_is_one_line(machine: Machine, version: str, words: str) -> None:
    path = machine.python("other", version)
    _, error = machine.setup(PYTHON=str(path))
    assert f"{path} {words} 3.11, 3.12 or 3.13 is needed" in error
    _, error = machine.setup(PYTHON="absent")
    assert "absent is no Python, and" in error


def test_an_installed_torch_is_kept_when_asked(machine: Machine) -> None:
    machine.python("python3.13", "3.13")
    machine.python("python3", "3.12", torch="2.11.0+cu130")
    printed, error = machine.setup(TORCH="system")
    assert printed == f"setup: Python 3.12 ({machine.bin / 'python3'}) with its own torch 2.11.0+cu130\n" and STOPPED in error
    machine.python("../.venv/bin/python", "3.12", torch="2.13.0")
    _, error = machine.setup(TORCH="system")
    assert ".venv has a torch of its own; for TORCH=system delete .venv first" in error


def test_no_package_may_replace_the_torch_that_is_kept(machine: Machine, root: Path) -> None:
    machine.script(machine.bin / "python3", BUILDS)
    shutil.copy(root / "requirements.lock", machine.folder)
    given = {"PATH": str(machine.bin), "SETUP_MIN_FREE_KB": "0", "SETUP_CPUINFO": str(machine.folder / "cpuinfo")}
    words = {"cwd": machine.folder, "capture_output": True, "text": True, "check": False}
    done = subprocess.run(["sh", "setup.sh"], env={**given, "TORCH": "system"}, **words)
    assert done.returncode == 0 and done.stdout.endswith("setup: done\n"), done.stderr
    assert "--system-site-packages" in (machine.folder / "made").read_text(), "torch is seen through, not copied"
    calls = [line for line in (machine.folder / "pip").read_text().splitlines() if " install " in line]
    assert calls and all("-c .venv/keep.txt" in line or "--no-deps" in line for line in calls)
    assert (machine.folder / ".venv/keep.txt").read_text() == "torch==2.11.0+cu130\n"
    others = (machine.folder / ".venv/others.txt").read_text().splitlines()
    locked = (root / "requirements.lock").read_text().splitlines()
    assert not any(line.startswith("torch==") for line in others) and len(others) == len(locked) - 1, "all but torch"

    shutil.rmtree(machine.folder / ".venv")
    (machine.folder / "pip").unlink()
    done = subprocess.run(["sh", "setup.sh"], env={**given, "PYTHON": "python3"}, **words)
    assert done.returncode == 0 and "-r requirements.lock" in (machine.folder / "pip").read_text(), done.stderr
    assert "--system-site-packages" not in (machine.folder / "made").read_text()


@pytest.mark.parametrize("torch", ["1.13.1", "2.9.1+cu128", "2.10.0", "3.0.0"])
def test_an_installed_torch_out_of_range_is_one_line(machine: Machine, torch: str) -> None:
    path = machine.python("python3", "3.12", torch=torch)
    _, error = machine.setup(TORCH="system")
    assert f"{path.name} has torch {torch}, and 2.11 or newer is needed; run: " in error and "'torch>=2.11,<3'" in error
    assert supported.wrong_torch(torch), "the same range as at run time"


@pytest.mark.parametrize("torch", ["2.11", "2.11.0a0+nv26.1", "2.15.0", "2.20.1"])
def test_installed_torches_in_range(machine: Machine, torch: str) -> None:
    machine.python("python3", "3.12", torch=torch)
    printed, error = machine.setup(TORCH="system")
    assert printed.endswith(f"with its own torch {torch}\n") and STOPPED in error
    assert not supported.wrong_torch(torch), "the same range as at run time"


def test_no_torch_to_keep_is_one_line(machine: Machine) -> None:
    path = machine.python("python3", "3.12")
    assert "no Python 3.11, 3.12 or 3.13 with torch was found" in machine.setup(TORCH="system")[1]
    assert f"{path} has no torch; install torch 2.11 or newer" in machine.setup(TORCH="system", PYTHON=str(path))[1]
    assert "TORCH=mine is unknown" in machine.setup(TORCH="mine")[1]


def test_a_cpu_without_avx2_is_one_line(machine: Machine) -> None:
    machine.python("uname", "x", torch="")
    machine.script(machine.bin / "uname", "#!/bin/sh\necho x86_64\n")
    machine.python("python3", "3.12")
    (machine.folder / "cpuinfo").write_text("flags : fpu sse4_2 avx\n")
    assert "this CPU has no AVX2" in machine.setup()[1]
    assert STOPPED in machine.setup(VIDEOAR_ANY_CPU="1")[1]
    machine.script(machine.bin / "uname", "#!/bin/sh\necho aarch64\n")
    assert STOPPED in machine.setup()[1]


def test_the_range_of_python_is_that_of_the_package(root: Path) -> None:
    named = re.search(r"in 3\.11\|3\.12\|3\.13\)", (root / "setup.sh").read_text())
    assert named is not None
    for minor in range(9, 16):
        assert (f"3.{minor}" in named[0]) == (supported.wrong_python((3, minor)) == "")
