"""DOC from pretrain/engine/engine.py."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from pretrain.engine.config import DeepSpeedConfig, TrainConfig

OURS = {
    "train_batch_size": "curriculum.stages[].mix[].batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "curriculum.stages[].mix[].batch and train.micro_batch",
    "gradient_clipping": "train.clip",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "bf16": "train.dtype",
    "bfloat16": "train.dtype",
    "fp16": "train.dtype",
    "data_types": "train.dtype",
    "seed": "run.seed",
}
"""DeepSpeed keys that this program sets, and our key for each."""


class EngineError(ValueError):
    """A combination of settings that cannot train; the message names the keys."""


def zero_stage(section: DeepSpeedConfig) -> int:
    """Return the ZeRO stage that the `deepspeed` section asks for."""
    return int(section.zero_optimization.get("stage", 0))


def check_compiler(compile: bool, device: torch.device) -> None:
    """Raise EngineError where model.compile=true cannot work: on a CPU, torch.compile needs a C++ compiler (CXX, else g++)."""
    compiler = os.environ.get("CXX", "g++")
    if compile and device.type == "cpu" and shutil.which(compiler) is None:
        raise EngineError(
            f"model.compile=true needs a C++ compiler on a CPU and `{compiler}` is not there: install it, or set model.compile=false"
        )


def deepspeed_config(train: TrainConfig, section: DeepSpeedConfig, world: int, *, universal: bool = False) -> dict[str, Any]:
    """Return the dictionary for DeepSpeed: its own keys from the section, ours from `train`.

    Raises EngineError for a key that this program sets, naming ours, and for combinations that cannot train.
    """
    given = section.model_dump()
    for key, ours in OURS.items():
        if key in given:
            raise EngineError(f"`deepspeed.{key}` contradicts this program's own key: remove it and set {ours}")
    stage = zero_stage(section)
    if stage not in (0, 1, 2, 3):
        raise EngineError(f"`deepspeed.zero_optimization.stage` is {stage}; ZeRO stages are 0, 1, 2 and 3")
    if stage == 0 and train.dtype != "float32":
        raise EngineError(
            "`deepspeed.zero_optimization.stage` 0 trains in float32 only; set train.dtype=float32 or a stage of 1 to 3"
        )
    checkpoint = dict(given.pop("checkpoint", {}))
    for key in ("load_universal", "tag_validation", "writer"):
        if key in checkpoint:
            raise EngineError(f"`deepspeed.checkpoint.{key}` contradicts this program's own checkpoints: remove it")
    checkpoint |= {"load_universal": universal, "tag_validation": "Ignore"}
    zero = dict(given.pop("zero_optimization"))
    if zero.get("offload_optimizer"):
        # Our AdamW is torch's; DeepSpeed's own CPU Adam would be compiled at run time.
        given.setdefault("zero_force_ds_cpu_optimizer", False)
    made: dict[str, Any] = {
        **given,
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Stage 0 clips in `step`. Muon's updates have a norm of their own making: clipping them would undo it.
        "gradient_clipping": 0.0 if stage == 0 or train.optimizer == "muon" else train.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": given.get("steps_per_print", 10**9),
        "checkpoint": checkpoint,
    }
    if train.dtype == "bfloat16":
        made["bf16"] = {"enabled": True}
        made["data_types"] = {"grad_accum_dtype": "fp32"}
    if train.optimizer == "muon":
        if stage == 0:
            raise EngineError("train.optimizer=muon needs deepspeed.zero_optimization.stage 1, 2 or 3")
        zero["reduce_scatter"] = False
        made["optimizer"] = {
            "type": "Muon",
            "params": {"lr": train.learning_rate, "weight_decay": train.weight_decay, "torch_adam": True},
        }
    return made
