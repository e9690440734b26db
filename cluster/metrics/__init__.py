"""Figures that leave a running job.

In come values by declared name and one `StepReport` for each training step; out go Prometheus text over HTTP and JSON lines.
Begin with `declarations.py`, where every metric is declared once.
"""

from cluster.metrics.declarations import METRICS, PREFIX, Metric
from cluster.metrics.json_lines import JsonLines
from cluster.metrics.meter import Meter, MetricsPortError
from cluster.metrics.step_report import StepReport

__all__ = ["METRICS", "PREFIX", "JsonLines", "Meter", "Metric", "MetricsPortError", "StepReport"]
