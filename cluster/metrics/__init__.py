"""Metrics of a running job.

In: values by metric name, and one `StepReport` per training step. Out: Prometheus text over HTTP and a target
that tells Prometheus of it, JSON lines, heartbeats of ranks.
Read `declarations.py` first: every metric is declared there once.
"""

from cluster.metrics.declarations import METRICS, PREFIX, Metric
from cluster.metrics.endpoint import Endpoint
from cluster.metrics.heartbeat import Heartbeat
from cluster.metrics.meter import Meter, MetricsPortError
from cluster.metrics.step_report import JsonLines, StepReport, last_step

__all__ = [
    "METRICS",
    "PREFIX",
    "Endpoint",
    "Heartbeat",
    "JsonLines",
    "Meter",
    "Metric",
    "MetricsPortError",
    "StepReport",
    "last_step",
]
