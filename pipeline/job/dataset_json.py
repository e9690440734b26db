"""dataset.json: what every shard of a folder has in common, and the settings that shape their content.

In:  the configuration and the codec's spec.
Out: the plain values of dataset.json; a folder begun with others is refused (pipeline.ledger).
Called by: pipeline.ray_job.
"""

from __future__ import annotations

from typing import Any

from cluster.config import Config
from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.shards.layout import FORMAT, flat
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


def dataset(config: Config, spec: CodecSpec) -> dict[str, Any]:
    """Return dataset.json: what every shard of the folder has in common, and the settings that shape their content."""
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
        # A later version that has no such key any more can tell whether it mattered here.
        "not_default": sorted(key for key, value in flat(chosen).items() if usual[key] != value),
    }


def defaults() -> dict[str, Any]:
    """Return the settings that shape content, each with its default."""
    return _settings(PipelineConfig(), CorpusConfig())


def _settings(pipeline: PipelineConfig, corpus: CorpusConfig) -> dict[str, Any]:
    return {
        "pipeline": {key: value for key, value in pipeline.model_dump(mode="json").items() if key not in _NOT_CONTENT},
        "corpus": {key: value for key, value in corpus.model_dump(mode="json").items() if key in ("captions", "columns")},
    }


def _scales(spec: CodecSpec, frames: int, height: int, width: int) -> list[list[int]]:
    _, rows, columns = spec.grid(frames, height, width)
    return [list(scale) for scale in spec.scales(rows, columns)]
