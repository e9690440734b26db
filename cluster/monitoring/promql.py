"""DOC from cluster/monitoring/dashboards.py."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.metrics import METRICS
from cluster.monitoring.alerts import ALERTS
from cluster.monitoring.panels import DASHBOARDS

_WORDS = frozenset(
    ["and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "inf", "nan"]
)


_BUILT_IN = frozenset({"up"})
"""Metrics that Prometheus itself makes of every target."""


class DashboardError(ValueError):
    """Files that cannot be written as asked; the message says why."""


def names_in(query: str) -> set[str]:
    """Return the metric names in a PromQL query."""
    bare = re.sub(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    found = re.findall(r"(?<![\w.:$])([A-Za-z_:][\w:]*)\b(?!\s*\()", bare)
    return {name for name in found if name.lower() not in _WORDS}


def known_series() -> set[str]:
    """Return every series name that the declared metrics serve: histograms as _bucket, _sum and _count."""
    series: set[str] = set(_BUILT_IN)
    for metric in METRICS.values():
        endings = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        series.update(metric.exported + ending for ending in endings)
    return series


def queries() -> Iterator[tuple[str, str]]:
    """Yield (where, PromQL) of every panel and alert."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query, _ in panel.queries:
                yield f"{dashboard.name}: {panel.title}", query
    for alert in ALERTS:
        yield f"alert {alert.name}", alert.query
