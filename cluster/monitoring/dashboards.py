"""`videoar dashboards DIR`: files for Prometheus and Grafana, made from the declared panels, alerts and metrics.

In:  a folder, optionally run folders whose jobs Prometheus is to scrape.
Out: DIR/prometheus/prometheus.yml, alerts.yml and targets/RUN.json; DIR/grafana/NAME.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.metrics import METRICS
from cluster.monitoring.alerts import ALERTS
from cluster.monitoring.panels import DASHBOARDS, Dashboard, Panel
from cluster.runtime.atomic_files import write_text

_PROMQL_WORDS = frozenset(
    ["and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "inf", "nan"]
)
_BUILT_IN = frozenset({"up"})
"""Metrics that Prometheus itself records for every target."""


class DashboardError(ValueError):
    """Files that cannot be written as requested; the message gives the reason."""


def grafana(dashboard: Dashboard) -> dict[str, Any]:
    """Return a dashboard in Grafana's JSON model (schema 39), its panels laid out row by row."""
    panels: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(dashboard.panels, start=1):
        height = 4 if panel.kind == "stat" else 8
        if x + panel.width > 24:
            x, y = 0, y + (4 if dashboard.panels[number - 2].kind == "stat" else 8)
        panels.append({"id": number, "gridPos": {"x": x, "y": y, "w": panel.width, "h": height}, **_panel(panel)})
        x += panel.width
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "uid": dashboard.name,
        "title": dashboard.title,
        "tags": ["videoar"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                {
                    "name": "run",
                    "type": "query",
                    "label": "run",
                    "datasource": source,
                    "query": {"query": 'label_values(up{job="videoar"}, run)', "refId": "run"},
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    custom = {"scaleDistribution": {"type": "log", "log": 10}} if panel.log else {}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": source, "expr": query, "legendFormat": legend or "__auto"}
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def prometheus() -> dict[str, Any]:
    """Return the content of prometheus.yml: scrape the targets in targets/*.json, and load alerts.yml."""
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "15s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [
            {"job_name": "videoar", "file_sd_configs": [{"files": ["targets/*.json"], "refresh_interval": "15s"}]}
        ],
    }


def alerts() -> dict[str, Any]:
    """Return the content of alerts.yml."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.query,
            "for": alert.duration,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "mend": alert.fix},
        }
        for alert in ALERTS
    ]
    return {"groups": [{"name": "videoar", "rules": rules}]}


def target(run: Path) -> list[dict[str, Any]]:
    """Return the scrape target of a run folder. Raises DashboardError when its job has not served metrics yet."""
    file = run / "metrics-address"
    try:
        address = file.read_text().strip()
    except OSError as error:
        raise DashboardError(f"{file}: {error.strerror}; the job writes it at its start if metrics.enabled is set") from error
    if not re.fullmatch(r"\S+:\d+", address):
        raise DashboardError(f"{file}: `{address}` is not HOST:PORT")
    return [{"targets": [address], "labels": {"run": run.resolve().name}}]


def write(folder: Path, runs: Sequence[Path] = ()) -> list[Path]:
    """Write all files and return their paths; files of earlier calls are replaced, targets of other runs are kept.

    Raises DashboardError for a run without an address.
    """
    unknown = {where: metrics_in(query) - known_series() for where, query in queries() if metrics_in(query) - known_series()}
    assert not unknown, f"queries of metrics that are not declared: {unknown}"
    text: dict[Path, str] = {
        Path("prometheus/prometheus.yml"): yaml.safe_dump(prometheus(), sort_keys=False),
        Path("prometheus/alerts.yml"): yaml.safe_dump(alerts(), sort_keys=False, width=1000),
        **{Path(f"grafana/{dashboard.name}.json"): json.dumps(grafana(dashboard), indent=1) + "\n" for dashboard in DASHBOARDS},
        **{Path(f"prometheus/targets/{run.resolve().name}.json"): json.dumps(target(run)) + "\n" for run in runs},
    }
    (folder / "prometheus" / "targets").mkdir(parents=True, exist_ok=True)
    for path, content in text.items():
        write_text(folder / path, content)  # atomic: Prometheus watches targets/ and must not read half a file
    return [folder / path for path in text]


def metrics_in(query: str) -> set[str]:
    """Return the metric names in a PromQL query."""
    bare = re.sub(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    found = re.findall(r"(?<![\w.:$])([A-Za-z_:][\w:]*)\b(?!\s*\()", bare)
    return {name for name in found if name.lower() not in _PROMQL_WORDS}


def known_series() -> set[str]:
    """Return the name of every series of the declared metrics; a histogram has _bucket, _sum and _count."""
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
