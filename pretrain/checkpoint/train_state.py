"""What a run is and how far it came: the small JSON files of RUN/ and of each checkpoint.

In:  the configuration, the data digest, the ranks' own view of their code.
Out: RUN/config.yaml, RUN/run.json (provenance), RUN/status.json, checkpoint's state.json; clear refusals.
Called by: train.py, checkpoint.py, compare.py.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cluster.config import Config
from pretrain.engine.config import CurriculumConfig, ModelConfig

PACKAGES = ("torch", "deepspeed", "numpy", "pyarrow", "zstandard", "safetensors")


class ResumeError(ValueError):
    """A checkpoint that this configuration cannot go on from; the message names the difference and the mend."""


class RankMismatch(ValueError):
    """Ranks that do not run the same thing; the message names the rank and the difference."""


@dataclass(frozen=True)
class TrainState:
    """state.json of a checkpoint: all that resume needs beside the tensors. The loader's state is `step`."""

    step: int
    """Steps that ended."""
    stage: int
    """Stage number of that step, from 0."""
    stage_ends: bool
    """The step was the last of its stage (such checkpoints are kept)."""
    tokens: int
    """Positions trained on so far, all ranks."""
    world: int
    """Ranks that wrote the checkpoint."""
    zero_stage: int
    optimizer: str
    seed: int
    data_digest: str
    tokenizer: dict[str, Any]
    """CodecSpec of the shards, plain."""
    model: dict[str, Any]
    """The `model` section."""
    past: str
    """Digest of the curriculum up to `step`."""
    guard: dict[str, Any] = field(default_factory=dict)
    """State of guard.py."""
    has_ema: bool = False

    def write(self, path: Path) -> None:
        """Write state.json."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> TrainState:
        """Read state.json. Raises ResumeError for one of another format."""
        try:
            plain = json.loads(path.read_text())
            return cls(**{item.name: plain[item.name] for item in fields(cls)})
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ResumeError(f"{path}: no readable training state ({type(error).__name__}: {error})") from error

    def check(self, now: TrainState, *, accept_new_data: bool, folder: Path) -> list[str]:
        """Refuse a resume that would not continue this run. Returns notes on changes that are accepted.

        Raises ResumeError, naming the key and both values.
        """

        def refuse(key: str, old: object, new: object, mend: str) -> None:
            raise ResumeError(f"{folder}: `{key}` was {old} in this run and is {new} now; {mend}")

        # A key that an older version did not know held its default then.
        usual = ModelConfig().model_dump(mode="json")
        old_model, new_model = {**usual, **self.model}, {**usual, **now.model}
        for name in sorted({*old_model, *new_model}):
            if old_model.get(name) != new_model.get(name):
                refuse(f"model.{name}", old_model.get(name), new_model.get(name), "restore it, or set run.dir to a new folder")
        for key, old, new in (
            ("run.seed", self.seed, now.seed),
            ("tokenizer digest of the shards", self.tokenizer["digest"][:12], now.tokenizer["digest"][:12]),
            ("train.optimizer", self.optimizer, now.optimizer),
            ("deepspeed.zero_optimization.stage", self.zero_stage, now.zero_stage),
            ("train.ema > 0", self.has_ema, now.has_ema),
            ("curriculum.stages (steps that are already trained)", self.past[:12], now.past[:12]),
        ):
            if old != new:
                refuse(key, old, new, "restore it, or set run.dir to a new folder")
        if self.data_digest != now.data_digest:
            if not accept_new_data:
                refuse(
                    "digest of the token shards and exclusion lists",
                    self.data_digest[:12],
                    now.data_digest[:12],
                    "restore the shards, or set train.accept_new_data=true to let the order be the new data's from here on",
                )
            return [f"the token shards changed; from step {self.step + 1} on the order is that of the new index"]
        return []


def past_digest(config: CurriculumConfig, step: int) -> str:
    """Return the sha256 over all of a counted curriculum that decided the order of steps 1..step."""
    plain, left = [], step
    for stage in config.stages:
        if left <= 0:
            break
        plain.append({"mix": [mix.model_dump(exclude={"batch_tokens"}) for mix in stage.mix], "steps": min(left, stage.steps)})
        left -= stage.steps
    text = json.dumps([plain, list(config.weights)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest() -> str:
    """Return the sha256 over the source files of the four packages, as this process would import them."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in ("cluster", "pipeline", "pretrain", "tokenizer"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def identity(config: Config, data_digest: str) -> dict[str, str]:
    """Return what must be equal on all ranks, flat: one entry a setting, so that a difference can be named."""
    found = {"code": code_digest()[:12], "data": data_digest[:12], "python": platform.python_version()}
    found.update({f"package {name}": version for name, version in versions().items()})
    for name, section in config.plain().items():
        if name not in ("cluster", "metrics", "corpus"):
            found.update(_flat(name, section))
    return found


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {key: text for name, item in value.items() for key, text in _flat(f"{prefix}.{name}", item).items()}
    return {prefix: json.dumps(value)}


def agree(identities: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> None:
    """Raise RankMismatch when a rank differs from rank 0, naming the rank, its host and the first difference."""
    first = identities[0]
    for rank, other in enumerate(identities):
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key):
                raise RankMismatch(
                    f"rank {rank} on {hosts[rank]} differs from rank 0 on {hosts[0]}: `{key}` is {other.get(key)} there and "
                    f"{first.get(key)} on rank 0; start all ranks with the same code and configuration"
                )


def versions() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def commit() -> str:
    """Return the git commit of the code, `+changes` when files differ, or an empty text outside a clone."""
    root = Path(__file__).resolve().parents[1]
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def write_provenance(run: Path, config: Config, *, data_digest: str, hosts: Sequence[str], resumed_from: int) -> None:
    """Write RUN/config.yaml and append one start to RUN/run.json."""
    write_atomic(run / "config.yaml", config.yaml())
    path = run / "run.json"
    starts: list[Any] = json.loads(path.read_text())["starts"] if path.is_file() else []
    starts.append(
        {
            "commit": commit(),
            "code_digest": code_digest(),
            "python": platform.python_version(),
            "packages": versions(),
            "hosts": list(hosts),
            "data_digest": data_digest,
            "config_digest": config.digest(),
            "resumed_from": resumed_from,
            "restarts": int(os.environ.get("VIDEOAR_RESTARTS", "0")),
        }
    )
    write_atomic(path, json.dumps({"starts": starts}, indent=1) + "\n")


def write_status(run: Path, state: str, step: int, steps: int, line: str = "") -> None:
    """Write RUN/status.json: `running`, `stopped`, `finished` or `failed`, for supervisors and monitors."""
    plain = {"state": state, "step": step, "steps": steps, "line": line, "host": socket.gethostname(), "pid": os.getpid()}
    write_atomic(run / "status.json", json.dumps(plain) + "\n")


def mark_failed(run: Path, line: str) -> None:
    """Turn `running` in RUN/status.json into `failed`, with the error's line."""
    path = run / "status.json"
    if path.is_file():
        plain = json.loads(path.read_text())
        if plain["state"] == "running" and plain["pid"] == os.getpid():
            write_status(run, "failed", plain["step"], plain["steps"], line)


def write_atomic(path: Path, text: str) -> None:
    """Write a small file so that readers see the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def truncate_metrics(path: Path, step: int) -> int:
    """Cut metrics.jsonl after the line of `step` (a torn last line goes too). Returns how many bytes went.

    The file is cut in place: its writer may be open already, and readers keep following it.
    """
    if not path.is_file():
        return 0
    kept = 0
    with path.open("rb") as file:
        for text in file:
            try:
                if not text.endswith(b"\n") or json.loads(text)["step"] > step:
                    break
            except (json.JSONDecodeError, KeyError, TypeError):
                break
            kept += len(text)
    size = path.stat().st_size
    if kept < size:
        os.truncate(path, kept)
    return size - kept
