"""The recipes: configurations to start from, and the templates of schedulers that go with them.

In:  the name of a recipe, a folder.
Out: copies in that folder, to be edited. Nothing that is there is overwritten.
"""

from __future__ import annotations

import re
from pathlib import Path

from cluster.config.errors import ConfigError
from cluster.runtime.source_tree import source_root

COMPANIONS = {"demo": ("demo_captions.csv",)}
"""Files that a recipe goes with."""


def recipes() -> dict[str, str]:
    """Return the name and the first sentence of each recipe."""
    found = {}
    for path in sorted((source_root() / "cluster" / "recipes").glob("*.yaml")):
        first = _head(path)[0]
        found[path.stem] = re.split(r"(?<=[.:])\s", first)[0].rstrip(".:")
    return found


def copy(name: str, folder: Path) -> tuple[list[Path], list[str]]:
    """Copy a recipe and the templates into `folder`; returns what was written, and the commands that the recipe names.

    Raises ConfigError for an unknown recipe, and if a file of one of these names is there.
    """
    root = source_root() / "cluster"
    if name not in recipes():
        raise ConfigError(f"there is no recipe {name}; there are {', '.join(recipes())}")
    sources = [root / "recipes" / each for each in (f"{name}.yaml", *COMPANIONS.get(name, ()))]
    sources += [path for kind in ("slurm", "kubernetes") for path in sorted((root / kind).iterdir()) if path.is_file()]
    targets = [folder / (path.name if path.parent.name == "recipes" else f"{path.parent.name}/{path.name}") for path in sources]
    there = [str(path) for path in targets if path.exists()]
    if there:
        raise ConfigError(f"{there[0]} exists, and nothing is overwritten; choose another folder, or move it away")
    for source, target in zip(sources, targets):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    written = targets[0]
    return targets, [line.replace(f"configs/{name}.yaml", str(written)) for line in _commands(sources[0])]


def _head(path: Path) -> list[str]:
    """Return the lines of the comment that a recipe begins with."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return lines


def _commands(path: Path) -> list[str]:
    """Return the commands of the comment, and the lines that continue them."""
    found: list[str] = []
    for raw in path.read_text().splitlines():
        if not raw.startswith("#"):
            break
        line = raw[1:].strip()
        if line.startswith("Command:"):
            found.append(line.removeprefix("Command:").strip())
        elif found and raw.startswith("#    "):
            found.append(line)
        elif found:
            break
    return found
