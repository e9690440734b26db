"""The sections of a configuration: their names, their base class, and the three that belong to `cluster`.

A section's model is defined beside the code that it configures. This package imports none of the others, so SECTIONS names the
models as dotted paths, which are resolved when a file is read.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

SECTIONS: Mapping[str, str] = {
    "run": "cluster.config:RunConfig",
    "corpus": "pipeline.config:CorpusConfig",
    "tokenizer": "tokenizer.config:TokenizerConfig",
    "pipeline": "pipeline.config:PipelineConfig",
    "model": "pretrain.model.config:ModelConfig",
    "objective": "pretrain.objective.config:ObjectiveConfig",
    "curriculum": "pretrain.data.config:CurriculumConfig",
    "train": "pretrain.engine.config:TrainConfig",
    "sample": "pretrain.sampling.guidance:SampleConfig",
    "deepspeed": "pretrain.engine.config:DeepSpeedConfig",
    "metrics": "cluster.config:MetricsConfig",
    "cluster": "cluster.config:ClusterConfig",
}


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class Section(BaseModel):
    """Base class of every section: frozen, unknown keys refused, each key documented by the docstring below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _local(cls, value: Any) -> Any:
        """Refuse a URL where a path of this machine is meant: as a path, s3://bucket/x is a folder `s3:` in the working folder."""
        for path in value if isinstance(value, tuple | list) else (value,):
            if isinstance(path, Path) and (url := _URL.match(str(path))):
                raise ValueError(
                    f"{url[1]}://{str(path)[url.end() :].lstrip('/')} is a URL, and this key takes a path of a disk; mount the store or "
                    "write to a disk that all hosts share, and copy what is finished"
                )
        return value


class RunConfig(Section):
    """The run's folder, name and seed."""

    name: str = "run"
    """Name shown on dashboards and in reports."""
    dir: Path = Path("runs/run")
    """Run folder: config.yaml, metrics.jsonl, log/, samples/, checkpoints/, report.html."""
    seed: int = 0
    """Seed of the run; every random draw derives from it."""


class MetricsConfig(Section):
    """Prometheus endpoint of a running job."""

    host: str = ""
    """Address that the endpoint binds to. Empty: loopback on one machine; all addresses for a job on several hosts or in a pod."""
    advertise: str = ""
    """Name or address at which Prometheus reaches this host. Empty: `host`, or for all addresses POD_IP or the host's own name."""
    targets: Path | None = None
    """Folder of scrape targets that Prometheus watches (`videoar dashboards DIR`: DIR/prometheus/targets): the job keeps its own file
    there. Empty: the environment variable VIDEOAR_METRICS_TARGETS, if it is set."""
    linger_seconds: float = Field(default=15.0, ge=0)
    """Seconds that a job which ended well waits at most for Prometheus to fetch its last values; it does not wait if nobody scrapes."""
    port: int = Field(default=9400, ge=0, le=65535)
    """Port of rank 0, or of the driver of a tokenization job; 0 picks any free port. The address in use is written to RUN/metrics-address."""
    enabled: bool = True
    """Serve the endpoint."""


class ClusterConfig(Section):
    """How jobs are started, on this machine or on a cluster."""

    ray_address: str = ""
    """Ray dashboard for `videoar submit`, such as http://127.0.0.1:8265; empty: RAY_API_SERVER_ADDRESS if set, else a local Ray is started."""
    ranks_per_host: int = Field(default=0, ge=0)
    """Training processes per host. 0: one per GPU, or one on a machine without GPUs."""
    max_restarts: int = Field(default=3, ge=0)
    """How many times in succession `videoar launch` restarts a failed training job; they are counted anew after each new checkpoint."""
    restart_wait_seconds: float = Field(default=2.0, ge=0)
    """Seconds between a failure and the restart; twice as long for each further failure without a new checkpoint, up to five minutes."""
    stop_grace_seconds: float = Field(default=120.0, gt=0)
    """Seconds that a job has, after SIGTERM or SIGINT, to write a checkpoint and exit before it is killed."""
    stall_seconds: float = Field(default=1800.0, ge=0)
    """A training job that finishes no step for this many seconds is killed and restarted, whatever it does (validation, samples and
    checkpoints must take less); a mere step may take ten times as long as the longest of the last ones, at least a minute. 0: never."""
    start_seconds: float = Field(default=1800.0, ge=0)
    """Seconds within which a training job must finish its first step: loading, and reading its checkpoint. 0: `stall_seconds`."""
    heartbeat_seconds: float = Field(default=30.0, ge=0)
    """A rank that sends no heartbeat for this many seconds, while others do and no step ends, is lost: the job is restarted. 0: never."""
    min_hosts: int = Field(default=1, ge=1)
    """A job over ssh goes on with the hosts that answer, if they are at least this many; it takes the others back when they do."""
    host_rest_seconds: float = Field(default=600.0, ge=0)
    """Seconds that a host is left out which was the first to fail twice in succession."""
    host_seconds: float = Field(default=20.0, ge=4)
    """Seconds after which a host that no longer answers is given up: what it runs of the job ends itself, and the job goes on without it."""
    host_ask_seconds: float = Field(default=15.0, gt=0)
    """Seconds between two questions to the hosts that are left out, whether they answer again."""
    accept_slow_dtype: bool = False
    """Go on in a recorded dtype that this hardware lacks and has to emulate (bfloat16 on a CPU with AVX2: about 90 times slower)."""
    master_port: int = Field(default=0, ge=0, le=65535)
    """Rendezvous port of the training job; 0 picks a free one."""
    master_addr: str = ""
    """Address at which the other hosts reach the first one. Empty: its name in the hostfile."""


def section_class(name: str) -> type[Section]:
    """Import and return the model class of the section `name`."""
    module, _, attribute = SECTIONS[name].partition(":")
    return cast("type[Section]", getattr(importlib.import_module(module), attribute))
