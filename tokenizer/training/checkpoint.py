"""Checkpoints of tokenizer training, independent of the number of ranks.

    step-00000500/  generator.safetensors      weights, Adam moments and step count of the autoencoder, whole, in float32
                    discriminator.safetensors  the same of the discriminator, when there is one
                    ema.safetensors            moving average of the autoencoder's weights
                    state.json                 step, recipe, LeCAM's mean logits
                    manifest.json DONE         size and sha256 of every file; DONE is written last

Checkpoints of earlier versions hold DeepSpeed's own files (generator/state/*.pt) instead of the first two and have an empty
DONE; they are still read, at the number of ranks that wrote them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from cluster.config.differences import differences
from cluster.runtime import checkpoint_folders
from cluster.runtime.atomic_files import DiskFull
from cluster.runtime.process_group import Ranks
from tokenizer.training.engine import TrainingError, ZeroEngine

KEEP = 2
"""Newest checkpoints that are kept."""


@dataclass(frozen=True)
class TrainState:
    """state.json."""

    step: int
    """Finished steps."""
    recipe: str
    """Digest of everything that determines the weights."""
    ranks: int
    """Ranks that wrote the checkpoint."""
    mean_logits: tuple[float, float]
    """Moving means of the discriminator's logits on originals and reconstructions, which LeCAM needs."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What the recipe is the digest of, as plain values; earlier versions do not record it."""
    dtype: str = "float32"
    """Type in which the network was trained; earlier versions, which do not record it, took float32 unless told otherwise."""

    @classmethod
    def read(cls, folder: Path) -> TrainState:
        """Read a checkpoint's state.json. Raises TrainingError."""
        path = folder / "state.json"
        try:
            found = json.loads(path.read_text())
            # Earlier versions called the mean logits `opinion`.
            real, fake = found["mean_logits"] if "mean_logits" in found else found["opinion"]
            dtype = str(found.get("dtype", "float32"))
            values = dict(found.get("values", {}))
            return cls(int(found["step"]), str(found["recipe"]), int(found["ranks"]), (float(real), float(fake)), values, dtype)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{path}: not the state of a checkpoint ({error}); remove {folder} and start again") from error


def write(root: Path, state: TrainState, tensors: Mapping[str, Mapping[str, Tensor]], log: Callable[[str], None]) -> None:
    """Publish a checkpoint, one NAME.safetensors for each entry of `tensors`, and drop older ones. Rank 0 only.

    A checkpoint that cannot be written (a full disk) is logged and dropped: the older ones stay and training continues.
    """
    partial = checkpoint_folders.partial_of(root, state.step)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, values in tensors.items():
            safetensors.torch.save_file(dict(values), partial / f"{name}.safetensors")
        (partial / "state.json").write_text(json.dumps(asdict(state)))
        checkpoint_folders.publish(partial, checkpoint_folders.folder_of(root, state.step))
    except (OSError, DiskFull, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        log(f"checkpoint of step {state.step} could not be written ({error}); older checkpoints stay, training continues")
        return
    checkpoint_folders.Keeper(root, KEEP, log).tend()


def find(
    root: Path, recipe: str, ranks: Ranks, log: Callable[[str], None], values: Mapping[str, Any] | None = None
) -> tuple[Path, TrainState] | None:
    """Return the newest sound checkpoint and its state, None when there is none. All ranks call this.

    Damaged checkpoints are set aside, with a log line that names what is wrong. Raises TrainingError for a checkpoint of another
    recipe, or when all of them are damaged. values: what the present recipe is the digest of, so that a difference can be named.
    """

    def none_sound(found: str) -> TrainingError:
        return TrainingError(f"{root}: all checkpoints are damaged ({found}); restore one, or remove {root} to start anew")

    def look() -> Path | None:
        checkpoint_folders.remove_leftovers(root)
        return checkpoint_folders.resumed(root, log, none_sound)

    folder: Path | None = ranks.from_first(look)
    if folder is None:
        return None
    state = TrainState.read(folder)
    if state.recipe != recipe:
        changed = "; ".join(differences(state.values, values)) if state.values and values else ""
        raise TrainingError(
            f"{folder} belongs to another tokenizer recipe{f' ({changed})' if changed else ''}; restore it, set another run.dir, or "
            f"remove {root} to start anew"
        )
    return folder, state


def load_engine(engine: ZeroEngine, folder: Path, name: str, state: TrainState) -> None:
    """Load the engine that a checkpoint calls `name`. All ranks call this. Raises TrainingError."""
    if not (folder / name).is_dir():
        path = folder / f"{name}.safetensors"
        engine.load_full_state(safetensors.torch.load_file(path), path)
        return
    if state.ranks != engine.ranks.world:
        raise TrainingError(
            f"{folder} was written by {state.ranks} ranks in an earlier format, which only as many ranks can read; "
            f"continue with {state.ranks} ranks instead of {engine.ranks.world} until the next checkpoint"
        )
    engine.load_partitioned(folder / name)
