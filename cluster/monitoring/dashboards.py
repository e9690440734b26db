"""`videoar dashboards DIR`: files for Prometheus and Grafana, from the declared metrics.

In:  a folder and, if there are any, run folders whose jobs are to be scraped.
Out: DIR/prometheus/prometheus.yml, alerts.yml and targets/RUN.json; DIR/grafana/NAME.json.
Called by: `cluster/cli/main.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.monitoring.alerts import ALERTS
from cluster.monitoring.panels import DASHBOARDS, Dashboard, Panel
from cluster.monitoring.promql import DashboardError, known_series, names_in, queries


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
        "description": panel.tells,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": source, "expr": query, "legendFormat": legend or "__auto"}
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def prometheus() -> dict[str, Any]:
    """Return prometheus.yml: scrape what targets/*.json names, and read alerts.yml."""
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "15s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [
            {"job_name": "videoar", "file_sd_configs": [{"files": ["targets/*.json"], "refresh_interval": "15s"}]}
        ],
    }


def alerts() -> dict[str, Any]:
    """Return alerts.yml."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.query,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "mend": alert.mend},
        }
        for alert in ALERTS
    ]
    return {"groups": [{"name": "videoar", "rules": rules}]}


def target(run: Path) -> list[dict[str, Any]]:
    """Return the scrape target of a run folder whose job serves metrics. Raises DashboardError when it has none yet."""
    file = run / "metrics-address"
    try:
        address = file.read_text().strip()
    except OSError as error:
        raise DashboardError(f"{file}: {error.strerror}; the job writes it when it starts with metrics.enabled") from error
    if not re.fullmatch(r"\S+:\d+", address):
        raise DashboardError(f"{file}: `{address}` is no HOST:PORT")
    return [{"targets": [address], "labels": {"run": run.resolve().name}}]


def write(folder: Path, runs: Sequence[Path] = ()) -> list[Path]:
    """Write all files and return their paths; those of earlier calls are replaced, targets of other runs stay.

    Raises DashboardError for a run without an address.
    """
    unknown = {where: names_in(query) - known_series() for where, query in queries() if names_in(query) - known_series()}
    assert not unknown, f"queries over metrics that are not declared: {unknown}"
    text: dict[Path, str] = {
        Path("prometheus/prometheus.yml"): yaml.safe_dump(prometheus(), sort_keys=False),
        Path("prometheus/alerts.yml"): yaml.safe_dump(alerts(), sort_keys=False, width=1000),
        **{Path(f"grafana/{dashboard.name}.json"): json.dumps(grafana(dashboard), indent=1) + "\n" for dashboard in DASHBOARDS},
        **{Path(f"prometheus/targets/{run.resolve().name}.json"): json.dumps(target(run)) + "\n" for run in runs},
    }
    (folder / "prometheus" / "targets").mkdir(parents=True, exist_ok=True)
    for path, content in text.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(".partial")  # Prometheus watches targets/: it must never read half a file
        partial.write_text(content)
        partial.replace(place)
    return [folder / path for path in text]
