"""The project's own source, read as text: its files, modules, rooms and imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


PACKAGES = ("tokenizer", "pipeline", "pretrain", "cluster")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages or PACKAGES for path in (ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def modules() -> frozenset[str]:
    return frozenset(module_of(path) for path in sources())


def room_of(module: str) -> str:
    """The room that a module lies in: its first two names, `pretrain.train` included."""
    return ".".join(module.split(".")[:2])


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, lazy) of each import; a name taken from a package counts as its module.

    Lazy: inside a function, or for the type checker only.
    """
    inside = {
        id(child)
        for block in ast.walk(tree(path))
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        for child in ast.walk(block)
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: write imports from the package's name, not relative"
            module = node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if full in modules() else module, node.lineno, id(node) in inside
