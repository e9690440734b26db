"""From the `train` and `deepspeed` sections to the dictionary that DeepSpeed is given.

DeepSpeed's keys pass through, except for those that this program sets itself (`OURS`): giving one of them is an error that names
the key to set instead. Gradient accumulation is not DeepSpeed's here; engine.py explains it.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from cluster.config import ConfigError
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
"""DeepSpeed's keys that this program sets, and the key of ours to set instead."""


class EngineError(ConfigError):
    """Settings that cannot train together; the message names the keys."""


def zero_stage(section: DeepSpeedConfig) -> int:
    """Return the ZeRO stage set in the `deepspeed` section."""
    return int(section.zero_optimization.get("stage", 0))


def check_compiler(compile: bool | str, device: torch.device) -> None:
    """Raise EngineError if model.compile=true cannot work: on a CPU, torch.compile needs a C++ compiler (CXX, else g++)."""
    compiler = os.environ.get("CXX", "g++")
    if compile is True and device.type == "cpu" and shutil.which(compiler) is None:
        raise EngineError(
            f"model.compile=true needs a C++ compiler on a CPU, but `{compiler}` was not found: install it, or set model.compile=false"
        )


def deepspeed_config(train: TrainConfig, section: DeepSpeedConfig, world: int, *, universal: bool = False) -> dict[str, Any]:
    """Return DeepSpeed's configuration: its own keys from the section, the others from `train`.

    universal: load a checkpoint in DeepSpeed's universal format. Raises EngineError for a key that this program sets, and for
    combinations that cannot train.
    """
    given = section.model_dump()
    for key, ours in OURS.items():
        if key in given:
            raise EngineError(f"`deepspeed.{key}` conflicts with a key of this program: remove it and set {ours}")
    stage = zero_stage(section)
    if stage not in (0, 1, 2, 3):
        raise EngineError(f"`deepspeed.zero_optimization.stage` is {stage}; ZeRO stages are 0, 1, 2 and 3")
    if stage == 0 and train.dtype != "float32":
        raise EngineError(
            "`deepspeed.zero_optimization.stage` 0 only trains in float32; set train.dtype=float32 or a stage from 1 to 3"
        )
    checkpoint = dict(given.pop("checkpoint", {}))
    for key in ("load_universal", "tag_validation", "writer"):
        if key in checkpoint:
            raise EngineError(f"`deepspeed.checkpoint.{key}` conflicts with this program's checkpoints: remove it")
    checkpoint |= {"load_universal": universal, "tag_validation": "Ignore"}
    zero = dict(given.pop("zero_optimization"))
    if zero.get("offload_optimizer"):
        # AdamW is torch's; DeepSpeed's own CPU Adam would have to be compiled at run time.
        given.setdefault("zero_force_ds_cpu_optimizer", False)
    made: dict[str, Any] = {
        **given,
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Stage 0 clips in Engine.step. Muon normalizes its updates itself: clipping would undo that.
        "gradient_clipping": 0.0 if stage == 0 or train.optimizer == "muon" else train.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": given.get("steps_per_print", 10**9),
        "checkpoint": checkpoint,
        # DeepSpeed's throughput timer, which nothing reads, synchronizes the device at both ends of every step.
        "timers": given.get("timers", {"throughput": {"enabled": False}}),
    }
    if train.dtype != "float32":
        made["bf16"] = {"enabled": True}
        made["data_types"] = {"grad_accum_dtype": "fp32"}
    if stage == 3 and train.optimizer == "adamw":
        # A bucket of copies only serves all-reduces; ZeRO-3 reduces and scatters the gradients themselves.
        zero.setdefault("contiguous_gradients", False)
    if train.optimizer == "muon":
        if stage == 0:
            raise EngineError("train.optimizer=muon needs deepspeed.zero_optimization.stage 1, 2 or 3")
        zero["reduce_scatter"] = False
        made["optimizer"] = {
            "type": "Muon",
            "params": {"lr": train.learning_rate, "weight_decay": train.weight_decay, "torch_adam": True},
        }
    return made
