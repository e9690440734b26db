"""Options that several commands share. Called by: the cli modules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Option("--config", "-c", metavar="CFG", help="YAML configuration.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Values that replace those of the file.")
]
