"""The configuration: one YAML file, validated whole, overridden by `section.key=value`.

In:  a YAML file and a list of overrides.
Out: a frozen `Config` whose sections are pydantic models.
Called by: every command; each section model stands beside the code that it configures.

`cluster` imports none of the other packages, so the sections are named here as dotted paths and
resolved when a file is read.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.config.errors import Given, duplicates, explain, key_lines, nearest, where_is

SECTIONS: Mapping[str, str] = {
    "run": "cluster.config:RunConfig",
    "corpus": "pipeline.config:CorpusConfig",
    "tokenizer": "tokenizer.config:TokenizerConfig",
    "pipeline": "pipeline.config:PipelineConfig",
    "model": "pretrain.engine.config:ModelConfig",
    "objective": "pretrain.engine.config:ObjectiveConfig",
    "curriculum": "pretrain.engine.config:CurriculumConfig",
    "train": "pretrain.engine.config:TrainConfig",
    "sample": "pretrain.engine.config:SampleConfig",
    "deepspeed": "pretrain.engine.config:DeepSpeedConfig",
    "metrics": "cluster.config:MetricsConfig",
    "cluster": "cluster.config:ClusterConfig",
}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, line, key and mend."""


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class RunConfig(Section):
    """Where a run lives and what seeds it."""

    name: str = "run"
    """Name shown on dashboards and in reports."""
    dir: Path = Path("runs/run")
    """Run folder: config.yaml, metrics.jsonl, log/, samples/, checkpoints/, report.html."""
    seed: int = 0
    """The one seed; every random draw of the run derives from it."""


class MetricsConfig(Section):
    """How figures leave a running job."""

    host: str = "127.0.0.1"
    """Address that the Prometheus endpoint binds to; loopback unless told otherwise."""
    port: int = Field(default=9400, ge=0, le=65535)
    """First port; rank 0 and the driver of a tokenization job take this one, 0 takes any free port (it is written to RUN/metrics-address)."""
    enabled: bool = True
    """Serve the Prometheus endpoint."""


class ClusterConfig(Section):
    """How jobs start on this machine or on a cluster."""

    ray_address: str = ""
    """Ray dashboard for `ray job submit`, such as http://127.0.0.1:8265; empty = RAY_API_SERVER_ADDRESS, or a local head for the job."""
    ranks_per_host: int = Field(default=0, ge=0)
    """Training processes a host; 0 = one per accelerator, or one on a machine with none."""
    max_restarts: int = Field(default=3, ge=0)
    """How often `videoar launch` starts a failed training job again from its newest checkpoint."""
    restart_wait_seconds: float = Field(default=2.0, ge=0)
    """Seconds between a failure and the new start."""
    stop_grace_seconds: float = Field(default=120.0, gt=0)
    """Seconds that a job gets to save and end after SIGTERM or SIGINT, before it is killed."""
    stall_seconds: float = Field(default=1800.0, ge=0)
    """A training job that finishes no step for so long is killed and started again; loading must fit in. 0 = never."""
    master_port: int = Field(default=0, ge=0, le=65535)
    """Rendezvous port of the training job; 0 takes a free one."""
    master_addr: str = ""
    """Address of the first host as the others reach it; empty takes its name in the hostfile."""


_S = TypeVar("_S", bound=Section)


class Config(BaseModel):
    """The resolved whole: every section validated, defaults filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    sections: dict[str, Any]
    source: Path

    def get(self, cls: type[_S]) -> _S:
        """Return the section that `cls` models. Raises KeyError when `cls` is no section."""
        for section in self.sections.values():
            if isinstance(section, cls):
                return section
        raise KeyError(f"{cls.__name__} is no configuration section")

    def plain(self) -> dict[str, Any]:
        """Return the whole as plain JSON/YAML values, sections in their fixed order."""
        return {name: section.model_dump(mode="json") for name, section in self.sections.items()}

    def yaml(self) -> str:
        """Return the whole as YAML text that `load` reads back to an equal Config."""
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)

    def digest(self, *names: str) -> str:
        """Return the sha256 (hex) over the named sections (all without names), independent of key order."""
        chosen = {k: v for k, v in self.plain().items() if not names or k in names}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def section_class(name: str) -> type[Section]:
    """Import and return the model of the section `name`."""
    module, _, attribute = SECTIONS[name].partition(":")
    return cast("type[Section]", getattr(importlib.import_module(module), attribute))


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override and validate a configuration.

    path: YAML file. overrides: `section.key=value` strings, the value in YAML syntax; a list item is
    addressed by its number (`curriculum.stages.0.steps=10`).
    Raises ConfigError, which names file, line, key and the nearest known key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    for key, first, again in duplicates(node):
        raise ConfigError(f"{path}:{again}: `{key}` is already set on line {first}; keep one of the two")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: the configuration must be a mapping of sections, found {type(data).__name__}")
    lines = key_lines(node) if node is not None else {}
    given: Given = {}
    for override in overrides:
        given[_apply(data, override)] = override
    for key in data:
        if key not in SECTIONS:
            raise ConfigError(
                f"{where_is(path, lines, given, (key,))}: unknown section `{key}`{nearest(str(key), list(SECTIONS))}"
            )
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        cls = section_class(name)
        value = data.get(name)
        try:
            sections[name] = cls.model_validate({} if value is None else value)
        except ValidationError as error:
            raise ConfigError(explain(path, lines, given, name, cls, error)) from error
    return Config(sections=sections, source=path)


def _apply(data: dict[str, Any], override: str) -> tuple[Any, ...]:
    """Write one override into `data` and return its place."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"override `{override}`: write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override `{override}`: the value is not valid YAML: {error}") from error
    if keys[0] not in SECTIONS:
        raise ConfigError(f"override `{override}`: unknown section `{keys[0]}`{nearest(keys[0], list(SECTIONS))}")
    here: Any = data
    place: list[Any] = []
    for depth, key in enumerate(keys[:-1]):
        if isinstance(here, list):
            place.append(_item(here, key, override))
            here = here[place[-1]]
        elif isinstance(here, dict):
            place.append(key)
            if here.get(key) is None:
                here[key] = {}
            here = here[key]
        else:
            raise ConfigError(f"override `{override}`: `{'.'.join(keys[:depth])}` holds a plain value, not keys")
    if isinstance(here, list):
        number = _item(here, keys[-1], override)
        here[number] = value
        return (*place, number)
    if isinstance(here, dict):
        here[keys[-1]] = value
        return (*place, keys[-1])
    raise ConfigError(f"override `{override}`: `{'.'.join(keys[:-1])}` holds a plain value, not keys")


def _item(items: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"override `{override}`: `{key}` is no item of a list of {len(items)} (items count from 0)")
    return int(key)
