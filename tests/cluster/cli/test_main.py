import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cluster.cli import main

GOOD = "run: {name: trial}\n"


def videoar(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, as a shell would."""
    command = [str(Path(sys.executable).with_name("videoar")), *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=120, check=False)


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


ALL = dict(commands(get_command(main.app)))


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from cluster.cli import main; code = main.run(['--help']); "
        "heavy = {'torch', 'ray', 'deepspeed', 'numpy', 'pydantic', 'av', 'pyarrow', 'yaml'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*name.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Usage: videoar {name}" in text
    program = "videoar" if name != "tokenize" else "ray job submit"
    assert f"Example: {program}" in text and name.split()[-1] in text.partition("Example: ")[2]


def test_config_show_prints_what_load_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.config import load

    file = tmp_path / "job.yaml"
    file.write_text(GOOD)
    assert main.run(["config", "show", "-c", str(file), "train.clip=0.5"]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert load(again).sections == load(file, ["train.clip=0.5"]).sections


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (
            ["config", "show", "-c", "none.yaml"],
            2,
            "videoar: none.yaml: cannot read the configuration: No such file or directory",
        ),
        (
            ["config", "show", "-c", "job.yaml", "run.sede=1"],
            2,
            "videoar: override `run.sede=1`: unknown key `run.sede`; did you mean `seed`?",
        ),
        (
            ["launch", "-c", "job.yaml", "--via", "ssh"],
            2,
            "videoar: --via ssh needs --hostfile FILE with one line `HOST slots=N` per host",
        ),
        (["report", "nowhere"], 1, "videoar: nowhere"),
        (["shards", "verify", "nowhere"], 1, "videoar: nowhere"),
        (["demo", "--videos", "nowhere"], 1, "nowhere: no such folder"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    words: list[str], code: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(GOOD)
    assert main.run(words) == code
    printed = capsys.readouterr()
    assert line in printed.err and printed.err.count("\n") == 1, printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    "words", [["launhc"], ["config", "show"], ["sample", "-c", "x", "--batch", "none"], ["launch", "--via", "mpi"]]
)
def test_a_wrong_command_line_is_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(words) == 2
    assert "Error: " in capsys.readouterr().err


def test_the_traceback_comes_on_request_and_for_bugs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIDEOAR_TRACEBACK", "1")
    assert main.run(["config", "show", "-c", str(tmp_path / "none.yaml")]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.delenv("VIDEOAR_TRACEBACK")
    monkeypatch.setattr("cluster.config.load", lambda *_: int("not ours"))
    assert main.run(["config", "show", "-c", "x"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "not ours" in printed


def test_a_full_disk_names_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "shards/x.tar")

    monkeypatch.setattr("cluster.config.load", full)
    assert main.run(["config", "show", "-c", "x"]) == 1
    assert capsys.readouterr().err == "videoar: shards/x.tar: No space left on device\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(GOOD)
    program = Path(sys.executable).with_name("videoar")
    done = subprocess.run(f"{program} config show -c {file} | head -1", shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "run:\n" and done.stderr == ""


def test_version_says_what_is_underneath() -> None:
    import platform

    import torch

    done = videoar("--version")
    first, second, third = done.stdout.splitlines()
    assert done.returncode == 0 and first.startswith("videoar 0.") and ("commit" in first or "no clone" in first)
    assert second == f"Python {platform.python_version()}, torch {torch.__version__}"
    assert "dtype: bfloat16 (auto" in third or "dtype: float32 (auto" in third


def test_init_writes_a_recipe_to_start_from_and_says_how_to_go_on(tmp_path: Path) -> None:
    done = videoar("init", str(tmp_path / "mine"), "--recipe", "ucf101")
    assert done.returncode == 0 and f"videoar tokenize -c {tmp_path}/mine/ucf101.yaml" in done.stdout
    assert videoar("config", "show", "-c", str(tmp_path / "mine" / "ucf101.yaml")).returncode == 0
    again = videoar("init", str(tmp_path / "mine"), "--recipe", "ucf101")
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "nothing is overwritten" in again.stderr
    assert "videoar_4b" in videoar("init", "--list").stdout
