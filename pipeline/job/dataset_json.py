"""dataset.json: what all shards of a folder have in common, and the settings that shape their content.

In:  the configuration and the codec's spec.
Out: the plain values of dataset.json. A folder that was begun with other settings is refused, with the list of what changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig, Config, ConfigError
from cluster.config.differences import differences as changed_values
from cluster.config.differences import flat
from cluster.config.precision import default_device, hardware, settle
from cluster.metrics.endpoint import TARGET
from cluster.runtime.atomic_files import read_json, write_json
from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.shards.layout import ADDRESS, DATASET, FORMAT, FolderError
from tokenizer.quantization.codec_spec import CodecSpec

FPS_RULE = "frame k of a clip is the frame that the video shows at begin + k / fps seconds from its first frame"
_NOT_CONTENT = {
    "output",
    "workers",
    "decoders",
    "decode_gpus",
    "cpus_per_worker",
    "gpus_per_worker",
    "min_free_gb",
    "limits",
    "videos_per_task",
    "worker_deaths",
    "stall_seconds",
}
"""Keys of the pipeline section that no shard's content depends on."""


class ConfigChanged(FolderError, ConfigError):
    """The folder was begun with another configuration; the message lists what changed."""


def dataset(config: Config, spec: CodecSpec) -> dict[str, Any]:
    """Return the content of dataset.json."""
    pipeline, corpus = config.get(PipelineConfig), config.get(CorpusConfig)
    chosen, usual = _settings(pipeline, corpus), flat(defaults())
    return {
        "format": FORMAT,
        "spec": spec.plain(),
        "fps": pipeline.fps,
        "fps_rule": FPS_RULE,
        "buckets": [bucket.name for bucket in pipeline.buckets],
        "features": pipeline.features,
        "scales": {b.name: _scales(spec, b.frames, b.height, b.width) for b in pipeline.buckets},
        **chosen,
        # A later version that no longer has such a key can tell whether it mattered here.
        "not_default": sorted(key for key, value in flat(chosen).items() if usual[key] != value),
    }


def defaults() -> dict[str, Any]:
    """Return the settings that shape content, each with its default; float32 was the type of folders that record none."""
    return _settings(_in_types(PipelineConfig(), "float32", "float32"), CorpusConfig())


def settled(config: Config) -> Config:
    """Return the configuration with types in the place of `auto`, as the folder records them or else by the hardware.

    The codec's type and the captioner's are each said in a line. Where workers have GPUs that this host lacks, bfloat16 is taken;
    a worker that lacks it says so. Raises DtypeError.
    """
    pipeline, accept = config.get(PipelineConfig), config.get(ClusterConfig).accept_slow_dtype
    path = pipeline.output / DATASET
    recorded = flat(read_json(path)["pipeline"]) if path.exists() else None
    chosen = []
    for key, wanted, gpus in (
        ("dtype", pipeline.dtype, pipeline.gpus_per_worker),
        ("captioner.dtype", pipeline.captioner.dtype, pipeline.captioner.gpus),
    ):
        before = "" if recorded is None else recorded.get(key, "float32")
        dtype: str = wanted
        if key == "dtype" or pipeline.captioner.weights is not None:
            # A worker checks its own hardware, so that of this host decides only what is not recorded.
            found = () if before or (gpus and default_device() == "cpu") else (hardware("cuda" if gpus else "cpu"),)
            made = settle(f"pipeline.{key}", wanted, found, recorded=before, accept=accept)
            print(made.line, flush=True)
            dtype = made.dtype
        chosen.append(before or "float32" if dtype == "auto" else dtype)
    if pipeline.dtype != "auto":  # said by the user: a worker that lacks the type warns and goes on
        config = config.replaced(config.get(ClusterConfig).model_copy(update={"accept_slow_dtype": True}))
    return config.replaced(_in_types(pipeline, *chosen))


def _in_types(pipeline: PipelineConfig, codec: str, captioner: str) -> PipelineConfig:
    """Return the section with these types."""
    captions = pipeline.captioner.model_copy(update={"dtype": captioner})
    return pipeline.model_copy(update={"dtype": codec, "captioner": captions})


def _settings(pipeline: PipelineConfig, corpus: CorpusConfig) -> dict[str, Any]:
    return {
        "pipeline": {key: value for key, value in pipeline.model_dump(mode="json").items() if key not in _NOT_CONTENT},
        "corpus": {key: value for key, value in corpus.model_dump(mode="json").items() if key in ("captions", "columns")},
    }


def _scales(spec: CodecSpec, frames: int, height: int, width: int) -> list[list[int]]:
    _, rows, columns = spec.grid(frames, height, width)
    return [list(scale) for scale in spec.scales(rows, columns)]


def begin(folder: Path, dataset: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Write dataset.json, or check that the folder was begun with the same one. Raises FolderError, or ConfigChanged.

    defaults: the settings with their default values, nested as in `dataset`.
    """
    path = folder / DATASET
    plain = json.loads(json.dumps(dataset))
    if not path.exists():
        own = (ADDRESS, TARGET)
        foreign = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name not in own)
        if foreign:
            raise FolderError(f"{folder}: holds {foreign[0]} but no {DATASET}; choose an empty folder as pipeline.output")
        write_json(path, plain)
        return
    changes = list(differences(read_json(path), plain, defaults or {}))
    if changes:
        raise ConfigChanged(
            f"{folder} was begun with another configuration:\n"
            + "\n".join(f"  {line}" for line in changes)
            + "\nrestore these values, or choose another pipeline.output"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line `key: old -> new` for each value that differs between two versions of dataset.json.

    A setting that an older version did not have counts as its default there. One that this version no longer has is no
    difference where the folder says that it had its default (it is not in `not_default`).
    """
    set_before = old.get("not_default")
    before, after = ({k: v for k, v in flat(side).items() if k != "not_default"} for side in (old, new))
    usual = flat(json.loads(json.dumps(defaults)))
    dropped = {
        key for key in before if key not in after and key not in usual and set_before is not None and key not in set_before
    }
    keys = {*before, *after} - dropped
    return changed_values(*({key: side.get(key, usual.get(key)) for key in keys} for side in (before, after)))
