"""A checkpoint made portable: one safetensors file and one JSON file, and a model from them in two lines.

    from pretrain.checkpoint.export import load_model
    model = load_model("export/")                  # a VideoAR in eval mode

In:  a run folder or one checkpoint folder.
Out: OUT/model.safetensors (whole tensors, fp32 or bfloat16), OUT/model.json (model section, tokenizer spec and digest, step, and what
     inference needs of the stage that was trained).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cluster.config import load as load_config
from cluster.config.errors import first_problem
from cluster.config.precision import Dtype
from cluster.runtime import checkpoint_folders
from cluster.runtime.atomic_files import write_text
from pretrain.checkpoint.train_state import TrainedStage, TrainState
from pretrain.data.config import CurriculumConfig
from pretrain.data.curriculum import Curriculum, counted
from pretrain.engine.config import TrainConfig
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig
from tokenizer.quantization.codec_spec import CodecSpec

PREFIX = "model."
"""Prefix of the transformer's parameters in a checkpoint, which holds the whole Objective."""
FORMAT = 1


class ExportError(ValueError):
    """A folder that cannot be exported or loaded; the message names it and the fix."""


@dataclass(frozen=True)
class Exported:
    """model.json."""

    model: ModelConfig
    objective: ObjectiveConfig
    spec: CodecSpec
    step: int
    averaged: bool
    """Whether the weights are the moving average."""
    dtype: str = "float32"
    """Data type of the weights."""
    trained: TrainedStage | None = None
    """The stage that was trained last; None in exports of earlier versions."""
    start_share: float = 0.0
    """How much of the moving average is the weights that it began with, 0 to 1."""


def export(source: Path, out: Path, *, average: bool | None = None, dtype: Dtype = "auto") -> Exported:
    """Write the folder `out` from a run folder (its newest whole checkpoint) or a checkpoint folder.

    average: export the moving average; None exports it if the run kept one. dtype: of the weights; auto takes the type that the
    checkpoint records, so that the file does not depend on the machine that writes it.
    Raises ExportError, or CheckpointError for a checkpoint that cannot be read.
    """
    # Here, so that a model is loaded without DeepSpeed.
    from pretrain.checkpoint.reader import read_ema, read_weights

    folder = _checkpoint(source)
    state = TrainState.read(folder / "state.json")
    config = load_config(folder / "config.yaml")
    spec = CodecSpec.parse(state.tokenizer)
    averaged = state.has_ema if average is None else average
    weights = read_weights(folder)
    if averaged:
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        weights = {**weights, **read_ema(folder, shapes)}
    kept = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    kind = config.get(TrainConfig).dtype if dtype == "auto" else dtype
    wanted = torch.bfloat16 if kind == "bfloat16" else torch.float32
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "model.safetensors.partial"
    try:
        save_file({name: value.detach().to(wanted).clone().contiguous() for name, value in kept.items()}, partial)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise ExportError(f"{out}: the weights could not be written ({error})") from error
    partial.replace(out / "model.safetensors")
    train, curriculum = config.get(TrainConfig), Curriculum(counted(config.get(CurriculumConfig), spec))
    trained = TrainedStage.parse(state.trained) if state.trained else TrainedStage.of(config, curriculum, state.step, 0.0)
    start = train.ema**state.step if state.ema_start is None else state.ema_start
    # The window of the stage that was trained, whatever the section `objective` says.
    objective = config.get(ObjectiveConfig).model_copy(update={"window": trained.window})
    made = Exported(
        config.get(ModelConfig),
        objective,
        spec,
        state.step,
        averaged,
        str(wanted).split(".")[1],
        trained,
        start if averaged else 0.0,
    )
    plain = {
        "format": FORMAT,
        "model": made.model.model_dump(mode="json"),
        "objective": made.objective.model_dump(mode="json"),
        "tokenizer": spec.plain(),
        "tokenizer_digest": spec.digest,
        "step": state.step,
        "averaged": averaged,
        "start_share": made.start_share,
        "dtype": made.dtype,
        "trained": trained.plain(),
        "tokens": state.tokens,
        "checkpoint": folder.name,
    }
    write_text(out / "model.json", json.dumps(plain, indent=1) + "\n")
    return made


def _checkpoint(source: Path) -> Path:
    if (source / "state.json").is_file():
        problem = checkpoint_folders.damage(source)
        if problem:
            raise ExportError(f"{source}: damaged checkpoint: {problem}; export another checkpoint of the run")
        return source
    passed: list[str] = []
    found = checkpoint_folders.newest(source / "checkpoints", passed.append)
    if found is None:
        raise ExportError(f"{source}: no undamaged checkpoint here{'; ' + '; '.join(passed) if passed else ''}")
    for line in passed:
        print(f"warning: {line}; {found.name} is taken", file=sys.stderr, flush=True)
    return found


def describe(folder: Path) -> Exported:
    """Read model.json. Raises ExportError."""
    try:
        plain: dict[str, Any] = json.loads((folder / "model.json").read_text())
        if plain["format"] != FORMAT:
            raise KeyError(f"format {plain['format']}, this program reads format {FORMAT}")
        return Exported(
            model=ModelConfig.model_validate(plain["model"]),
            objective=ObjectiveConfig.model_validate(plain["objective"]),
            spec=CodecSpec.parse(plain["tokenizer"]),
            step=int(plain["step"]),
            averaged=bool(plain["averaged"]),
            dtype=str(plain.get("dtype", "float32")),
            trained=TrainedStage.parse(plain["trained"]) if "trained" in plain else None,
            start_share=float(plain.get("start_share", 0.0)),
        )
    except ValidationError as error:
        raise ExportError(f"{folder}/model.json: {first_problem(error)}; export the checkpoint again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{folder}: no exported model here ({error}); make one with `videoar export`") from error


def load_model(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> VideoAR:
    """Return the exported VideoAR in eval mode; `describe(folder).spec` is its tokenizer's spec. Raises ExportError."""
    folder = Path(folder)
    found = describe(folder)
    model = VideoAR(found.model, found.spec.bits, TextTokenizer.make(found.model).vocabulary)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ExportError(f"{folder}/model.safetensors does not fit model.json: {error}") from error
    return model.to(device=device, dtype=dtype).eval()
