"""DOC from cluster/config/loader.py."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict, Field

SECTIONS: Mapping[str, str] = {
    "run": "cluster.config:RunConfig",
    "corpus": "pipeline.config:CorpusConfig",
    "tokenizer": "tokenizer.config:TokenizerConfig",
    "pipeline": "pipeline.config:PipelineConfig",
    "model": "pretrain.model.config:ModelConfig",
    "objective": "pretrain.objective.config:ObjectiveConfig",
    "curriculum": "pretrain.data.config:CurriculumConfig",
    "train": "pretrain.engine.config:TrainConfig",
    "sample": "pretrain.sampling.config:SampleConfig",
    "deepspeed": "pretrain.engine.config:DeepSpeedConfig",
    "metrics": "cluster.config:MetricsConfig",
    "cluster": "cluster.config:ClusterConfig",
}


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


def section_class(name: str) -> type[Section]:
    """Import and return the model of the section `name`."""
    module, _, attribute = SECTIONS[name].partition(":")
    return cast("type[Section]", getattr(importlib.import_module(module), attribute))
