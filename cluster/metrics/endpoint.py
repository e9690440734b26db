"""Where the metrics of a run are answered, and how Prometheus learns of it.

In:  a Meter, the section `metrics`, the run's folder and name.
Out: the endpoint; FOLDER/metrics-address (HOST:PORT), FOLDER/metrics-target.json (address and labels), and the same target as a file of its
     own in `metrics.targets`, which Prometheus watches (file_sd). It stays when the job dies, so that its silence rings, and goes when
     the job ends well, after the last values were fetched.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.config import ConfigError, MetricsConfig
from cluster.metrics.meter import Meter
from cluster.runtime.atomic_files import write_text
from cluster.runtime.job_protocol import ranks_here

ADDRESS, TARGET = "metrics-address", "metrics-target.json"
EVERYWHERE = "0.0.0.0"
"""Address to listen at when the job runs on several hosts or in a pod: Prometheus is elsewhere."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TARGETS_VARIABLE, POD_VARIABLE = "VIDEOAR_METRICS_TARGETS", "POD_IP"


class TargetError(ConfigError):
    """The folder of targets cannot be written; the message names the key."""


def bind_host(config: MetricsConfig, environ: Mapping[str, str]) -> str:
    """Return the address to listen at: `metrics.host`; without one, every address where other hosts take part or did, else loopback."""
    if config.host:
        return config.host
    world = int(environ.get("WORLD_SIZE", "1"))
    several = world != (ranks_here(environ) or world)
    # Of several hosts only one may be left; the job is still not that of a machine on which someone sits.
    several |= environ.get("MASTER_ADDR", LOOPBACK[0]) not in LOOPBACK or "SLURM_JOB_ID" in environ
    return EVERYWHERE if several or "KUBERNETES_SERVICE_HOST" in environ else "127.0.0.1"


def advertised_host(config: MetricsConfig, bound: str, environ: Mapping[str, str]) -> str:
    """Return the name at which Prometheus reaches what listens at `bound`: `metrics.advertise`, a pod's address, the host's own name."""
    if config.advertise:
        return config.advertise
    return bound if bound not in (EVERYWHERE, "::") else environ.get(POD_VARIABLE) or socket.gethostname()


def read_target(path: Path) -> dict[str, Any]:
    """Return the one target of a file; empty for a file that is missing or not one of ours."""
    try:
        plain = json.loads(path.read_text())[0]
        return plain if plain["targets"] and plain["labels"]["run"] and plain["labels"]["id"] else {}
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return {}


def file_name(target: Mapping[str, Any]) -> str:
    """Return the name of a target's file: of the run's name, and of its folder's own id, so that no two runs overwrite each other."""
    labels = target["labels"]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', labels['run'].removesuffix('-' + labels['id']))}-{labels['id']}.json"


class Endpoint:
    """Serves a Meter from `__init__` until `close`."""

    def __init__(self, meter: Meter, config: MetricsConfig, folder: Path, name: str) -> None:
        """Raise MetricsPortError for the port, TargetError for the folder of targets.

        name: the run's; empty or `run` (nobody gave one): the folder's.
        """
        self._meter, self._config, self._folder = meter, config, folder
        bound = bind_host(config, os.environ)
        given = config.targets or os.environ.get(TARGETS_VARIABLE)
        self._targets = Path(given) if given else None
        self._file: Path | None = None
        port = int(meter.serve(bound, config.port).rpartition(":")[2])
        self.address = f"{advertised_host(config, bound, os.environ)}:{port}"
        write_text(folder / ADDRESS, self.address + "\n")
        title = name if name not in ("", "run") else folder.resolve().name
        known = read_target(folder / TARGET)
        labels = known["labels"] if known else {"run": title, "id": secrets.token_hex(3)}
        if self._targets is not None and not known and labels["run"] in _taken(self._targets, labels["id"]):
            labels["run"] += "-" + labels["id"]
        target = {"targets": [self.address], "labels": labels}
        text = json.dumps([target]) + "\n"
        write_text(folder / TARGET, text)
        if self._targets is not None:
            self._file = self._targets / file_name(target)
            try:
                write_text(self._file, text)
            except OSError as error:
                meter.close()
                raise TargetError(
                    f"metrics.targets: {self._file}: {error.strerror or error}; set it to a folder that can be written"
                ) from error

    def close(self, *, well: bool, wait: bool = True) -> None:
        """Stop answering. well: the job ended as it should, so Prometheus fetches the last values once more and then forgets it.

        wait: false for a job that has to end at once, of which Prometheus forgets what it has not fetched.
        """
        if well:
            if wait:
                self._meter.linger(self._config.linger_seconds, known=self._file is not None)
            if self._file is not None:
                self._file.unlink(missing_ok=True)
        self._meter.close()


def _taken(folder: Path, own: str) -> set[str]:
    """Return the names of the other runs in a folder of targets."""
    labels = [read_target(path)["labels"] for path in folder.glob("*.json") if read_target(path)]
    return {each["run"] for each in labels if each["id"] != own}
