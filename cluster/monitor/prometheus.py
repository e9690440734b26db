"""Runs as a Prometheus server has them, for jobs whose folders are not on this machine.

In:  the address of a Prometheus that scrapes `videoar` jobs with a label `run`.
Out: the runs of the last day; their headline, their ranks, and charts over time. The browser never talks to Prometheus, only to us.
"""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.metrics.declarations import PREFIX
from cluster.monitor.charts import MOST_CURVES, Chart
from cluster.monitor.decimate import plain
from cluster.monitor.folders import MonitorError

TIMEOUT = 5.0
"""Seconds that Prometheus has for an answer."""
LOOK_BACK = 86_400.0
"""Seconds of history that are shown."""
CHARTS = (
    ("loss", "Loss", "nats per bit", "train_loss", ""),
    ("scale_loss", "Loss at each scale", "nats per bit", "train_scale_loss", "scale"),
    ("bit_accuracy", "Bit accuracy at each scale, 0 to 1", "", "train_bit_accuracy_ratio", "scale"),
    ("throughput", "Throughput, all ranks", "tokens/s", "train_tokens_per_second", ""),
    ("seconds", "Seconds of a step, by phase", "s", "train_phase_seconds", "phase"),
    ("grad_norm", "Gradient norm before clipping", "", "train_grad_norm", ""),
    ("shards", "Shards that are committed, share of the plan", "", "pipeline_progress_ratio", ""),
    ("tokenizer_loss", "Tokenizer: loss", "", "tokenizer_loss", ""),
)
"""Name, title, unit, metric, and the label that tells the curves apart."""


class PrometheusError(RuntimeError):
    """Prometheus does not answer, or not as one; the message names its address."""


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus server."""

    url: str

    def __post_init__(self) -> None:
        """Raise MonitorError for an address that is none."""
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise MonitorError(f"--prometheus {self.url}: give an address such as http://127.0.0.1:9090")

    def runs(self) -> list[str]:
        """Return the runs that had series in the time that is shown."""
        now = time.time()
        names = self._get("label/run/values", start=now - LOOK_BACK, end=now)
        return [str(name) for name in names]

    def headline(self, run: str) -> dict[str, Any]:
        """Return the line of a run in the list of runs."""
        found = {name: value for name, labels, value in self._now(run) if set(labels) <= _PLACE}
        up = [value for name, _, value in self._now(run, "up") if name == "up"]
        return {
            "folder": f"{self.url} run={run}",
            "state": "scraped" if any(up) else "gone",
            "line": "" if any(up) else "its endpoint answers no more: the job ended, or its host is down",
            "step": found.get("train_step", found.get("tokenizer_step")),
            "steps": found.get("train_steps"),
            "age": None,
            "loss": found.get("train_loss", found.get("tokenizer_loss")),
            "tokens_per_second": found.get("train_tokens_per_second"),
            "step_seconds": None,
            "left_seconds": found.get("train_eta_seconds"),
            "read": 1.0,
        }

    def overview(self, run: str) -> dict[str, Any]:
        """Return ranks with all that is measured of each, and all other present values."""
        ranks: dict[str, dict[str, Any]] = {}
        values = []
        now = time.time()
        for name, labels, value in self._now(run):
            own = {key: text for key, text in labels.items() if key not in _PLACE}
            if "rank" in own:
                row = ranks.setdefault(own["rank"], {"rank": own["rank"], "host": labels.get("instance", "")})
                key = " ".join([name.removeprefix("train_"), *(text for label, text in own.items() if label != "rank")])
                is_moment = name.endswith("_timestamp_seconds")
                row[key.replace("_timestamp_seconds", " age, s") if is_moment else key] = (
                    round(now - value, 1) if is_moment else value
                )
            else:
                values.append({"name": name, "labels": ", ".join(f"{k}={v}" for k, v in own.items()), "value": value})
        in_order = sorted(ranks.values(), key=lambda row: int(row["rank"]) if row["rank"].isdigit() else 0)
        return {
            "starts": [],
            "ranks": in_order,
            "checkpoints": [],
            "samples": [],
            "logs": [],
            "aside": [],
            "config": "",
            "values": values,
        }

    def charts(self, run: str, width: int) -> list[Chart]:
        """Return the charts over the time that is shown; empty ones are left out."""
        end = time.time()
        step = max(15.0, LOOK_BACK / width)
        found = []
        for name, title, unit, metric, label in CHARTS:
            query = f"{PREFIX}{metric}{{run={json.dumps(run)}}}"
            rows = self._get("query_range", query=query, start=end - LOOK_BACK, end=end, step=step)["result"]
            times = sorted({float(moment) for row in rows for moment, _ in row["values"]})
            place = {moment: number for number, moment in enumerate(times)}
            curves = []
            for row in rows[:MOST_CURVES]:
                values = np.full(len(times), math.nan)
                for moment, text in row["values"]:
                    values[place[float(moment)]] = float(text)
                curves.append((row["metric"].get(label, "") or metric, plain(values)))
            if times:
                found.append(Chart(name, title, unit, list(times), curves, time=True))
        return found

    def _now(self, run: str, name: str = "") -> list[tuple[str, dict[str, str], float]]:
        """Return (name without prefix, labels, value) of the present series of a run."""
        chosen = f"__name__={json.dumps(name)}" if name else f'__name__=~"{PREFIX}(train|tokenizer|pipeline)_.*"'
        rows = self._get("query", query=f"{{{chosen},run={json.dumps(run)}}}")["result"]
        found = []
        for row in rows:
            labels = dict(row["metric"])
            series = labels.pop("__name__", "").removeprefix(PREFIX)
            if not series.endswith(("_bucket", "_created")) and math.isfinite(float(row["value"][1])):
                found.append((series, labels, float(row["value"][1])))
        return found

    def _get(self, path: str, **query: Any) -> Any:
        address = f"{self.url.rstrip('/')}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT) as reply:
                return json.load(reply)["data"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise PrometheusError(f"{self.url}: no answer as of a Prometheus: {reason}") from error


_PLACE = {"run", "job", "instance", "host"}
"""Labels that say where a series was scraped."""
