"""Commands that the documentation and the recipes name exist, with the options that they are given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cluster.cli import main

ROOT = Path(__file__).resolve().parents[3]
TEXTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("configs/*.yaml"),
        *ROOT.glob("cluster/slurm/*"),
        *ROOT.glob("cluster/kubernetes/*"),
    ]
)
MODULE = re.compile(r"(?:-m|--module)[\", ]+((?:cluster|tokenizer|pipeline|pretrain)(?:\.\w+)+)")
"""A module that is started by name, in a text, a script or a command that the code builds."""
COMMAND = re.compile(r"(?:^|[\s`(|])(?:\.venv/bin/)?videoar((?: +(?:\\\n[#\s]*)?(?!videoar\b)[^\s`|;&)]+)+)", re.MULTILINE)


def _options(group: Any, words: list[str]) -> tuple[str, set[str] | None]:
    """The command that `words` begin with and its options; None for one that passes its words on. Raises KeyError."""
    name, command = "videoar", group
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            return name, {"--help", "--version"}
        found = [command.commands[word] for word in words[0].split("/")]  # prose may list several: verify/stat/digest
        name, command, words = f"{name} {words[0]}", found[0], words[1:]
    if command.context_settings.get("ignore_unknown_options"):
        return name, None
    return name, {
        "--help",
        *(option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)),
    }


def _required(group: Any, words: list[str]) -> list[set[str]]:
    """The options, under all their names, that the command which `words` begin with cannot do without."""
    command = group
    while hasattr(command, "commands"):
        command, words = command.commands[words[0].split("/")[0]], words[1:]
    return [set(item.opts) for item in command.params if item.required and item.param_type_name == "option"]


def _named(text: str) -> Iterator[list[str]]:
    for match in COMMAND.finditer(text):
        words = match.group(1).replace("\\\n", " ").replace("#", " ").split()
        if words and re.fullmatch(r"[a-z]+", words[0]):
            yield words


def test_commands_of_a_text_are_found() -> None:
    text = (
        "run `videoar tokenizer import --from A --output B`, then\n"
        "    videoar launch -c X \\\n#      --hostfile H  # and watch\nvideoar is a program"
    )
    assert list(_named(text))[:2] == [
        ["tokenizer", "import", "--from", "A", "--output", "B"],
        ["launch", "-c", "X", "--hostfile", "H", "and", "watch"],
    ]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_named_commands_exist(path: Path) -> None:
    group, text = get_command(main.app), path.read_text()
    for words in _named(text):
        if words[0] not in group.commands:  # type: ignore[attr-defined]
            # prose, such as "videoar writes"; a command that is meant carries an option or stands in code
            assert not any(word.startswith("-") for word in words), f"{path.name}: no command `videoar {' '.join(words)}`"
            assert f"`videoar {words[0]}" not in text, f"{path.name}: no command `videoar {words[0]}`"
            continue
        name, known = _options(group, words)
        if known is not None:
            given = {word.split("=")[0].rstrip(".,:") for word in words if re.match(r"--?[a-z]", word)}
            assert given <= known, f"{path.name}: `{name}` has no option {sorted(given - known)}"
            # prose may name a command alone or with one switch; a call with its configuration must carry what it cannot do without
            lacking = [options for options in _required(group, words) if not given & options]
            assert not given & {"-c", "--config"} or not lacking, f"{path.name}: `{name}` needs {lacking}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_named_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+)(?: [a-z0-9 -]+)?:", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets |= {
        name
        for line in re.findall(r"^((?:[a-z0-9-]+ )+[a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for name in line.split()
    }
    for name in re.findall(r"`make ([a-z0-9-]+)`", path.read_text()):
        assert name in targets, f"{path.name}: no target `make {name}`"


def test_modules_that_are_started_by_name_can_be_started() -> None:
    """`python -m` imports a module without an entry point and exits with 0: set-up would fetch nothing and report success."""
    packages = ("cluster", "tokenizer", "pipeline", "pretrain", "benchmarks")
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    named = {(path, name) for path in (*TEXTS, ROOT / "setup.sh", *sources) for name in MODULE.findall(path.read_text())}
    assert {name for _, name in named} >= {"pretrain.train", "pipeline.decoding.child", "tokenizer.evaluation.fetch"}
    for path, name in sorted(named):
        source = ROOT / f"{name.replace('.', '/')}.py"
        assert source.is_file(), f"{path.relative_to(ROOT)}: no module {name}"
        assert 'if __name__ == "__main__":' in source.read_text(), f"{path.relative_to(ROOT)}: {name} has no entry point"
