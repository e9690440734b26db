"""`videoar dashboards DIR`: files for Prometheus and Grafana, made from the declared panels, alerts and metrics.

In:  a folder, optionally run folders whose jobs Prometheus is to scrape.
Out: DIR/prometheus/prometheus.yml, alerts.yml, recorded.yml, alertmanager.yml, targets/RUN-ID.json and hosts/; DIR/grafana/NAME.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.metrics import METRICS
from cluster.metrics.endpoint import TARGET, file_name, read_target
from cluster.monitoring.alerts import ALERTS, RECORDED, alertmanager
from cluster.monitoring.host_panels import EXTERNAL, GPUS, HOSTS
from cluster.monitoring.panels import TOKENIZATION, TOKENIZER, Dashboard, Panel
from cluster.monitoring.train_panels import CHECKPOINTS, RANKS, SCALES, TRAINING
from cluster.runtime.atomic_files import write_text

_PROMQL_WORDS = frozenset(
    ["and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "inf", "nan"]
)
_BUILT_IN = frozenset({"up", *EXTERNAL, *RECORDED})
"""Series that no Meter exports: Prometheus's own, those of node_exporter and DCGM, and the recorded ones."""
_VALUES = {"run": 'label_values(up{job="videoar"}, run)', "instance": 'label_values(up{job=~"node|dcgm"}, instance)'}
"""Values of a dashboard's variable."""


WEBHOOK = "http://127.0.0.1:9095/"
"""Where Alertmanager sends until it is told otherwise."""
DASHBOARDS = (TRAINING, SCALES, RANKS, CHECKPOINTS, TOKENIZATION, TOKENIZER, GPUS, HOSTS)


class DashboardError(ValueError):
    """Files that cannot be written as requested; the message gives the reason."""


def grafana(dashboard: Dashboard) -> dict[str, Any]:
    """Return a dashboard in Grafana's JSON model (schema 39), its panels laid out row by row."""
    panels: list[dict[str, Any]] = []
    x = y = tallest = 0
    for number, panel in enumerate(dashboard.panels, start=1):
        height = 4 if panel.kind == "stat" else 8
        if x + panel.width > 24:
            x, y, tallest = 0, y + tallest, 0
        panels.append({"id": number, "gridPos": {"x": x, "y": y, "w": panel.width, "h": height}, **_panel(panel)})
        x, tallest = x + panel.width, max(tallest, height)
    source = {"type": "prometheus", "uid": "${datasource}"}
    hosts = dashboard.variable == "instance"  # one run at a time: curves of several would mix; hosts are looked at together
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
                    "name": dashboard.variable,
                    "type": "query",
                    "label": dashboard.variable,
                    "datasource": source,
                    "query": {"query": _VALUES[dashboard.variable], "refId": dashboard.variable},
                    "refresh": 2,
                    "multi": hosts,
                    "includeAll": hosts,
                    **({"allValue": ".*", "current": {"text": "All", "value": "$__all"}} if hosts else {}),
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
    """Return the content of prometheus.yml: the runs' own targets, hosts, rules, and a local Alertmanager."""
    jobs = {"videoar": "targets/*.json", "node": "hosts/node.json", "dcgm": "hosts/dcgm.json"}
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "15s"},
        "rule_files": ["recorded.yml", "alerts.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]},
        "scrape_configs": [
            {"job_name": name, "file_sd_configs": [{"files": [files], "refresh_interval": "15s"}]}
            for name, files in jobs.items()
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


def recorded() -> dict[str, Any]:
    """Return the content of recorded.yml."""
    return {
        "groups": [{"name": "videoar-recorded", "rules": [{"record": name, "expr": query} for name, query in RECORDED.items()]}]
    }


def target(run: Path) -> list[dict[str, Any]]:
    """Return the scrape target of a run folder. Raises DashboardError when its job has not served metrics yet."""
    file = run / TARGET
    if not file.is_file():
        raise DashboardError(f"{file}: No such file; the job writes it at its start if metrics.enabled is set")
    plain = read_target(file)
    if not plain or not re.fullmatch(r"\S+:\d+", str(plain["targets"][0])):
        raise DashboardError(f"{file}: not a target with HOST:PORT and the labels run and id; start the job again")
    return [plain]


def write(
    folder: Path, runs: Sequence[Path] = (), hosts: Sequence[str] = (), *, page_url: str = WEBHOOK, ticket_url: str = WEBHOOK
) -> list[Path]:
    """Write all files and return their paths; files of earlier calls are replaced, targets of other runs are kept.

    hosts: names of machines that run node_exporter (port 9100) and, with GPUs, DCGM's exporter (port 9400); none: those of the
    last call are kept. page_url, ticket_url: webhooks to which Alertmanager sends.

    Raises DashboardError for a run without an address.
    """
    unknown = {where: metrics_in(query) - known_series() for where, query in queries() if metrics_in(query) - known_series()}
    assert not unknown, f"queries of metrics that are not declared: {unknown}"
    text: dict[Path, str] = {
        Path("prometheus/prometheus.yml"): yaml.safe_dump(prometheus(), sort_keys=False),
        Path("prometheus/alerts.yml"): yaml.safe_dump(alerts(), sort_keys=False, width=1000),
        Path("prometheus/recorded.yml"): yaml.safe_dump(recorded(), sort_keys=False, width=1000),
        Path("prometheus/alertmanager.yml"): yaml.safe_dump(alertmanager(page_url, ticket_url), sort_keys=False),
        **{Path(f"grafana/{dashboard.name}.json"): json.dumps(grafana(dashboard), indent=1) + "\n" for dashboard in DASHBOARDS},
        **{Path(f"prometheus/targets/{file_name(each[0])}"): json.dumps(each) + "\n" for each in map(target, runs)},
    }
    for name, port in (("node", 9100), ("dcgm", 9400)):
        path = Path(f"prometheus/hosts/{name}.json")
        if hosts or not (folder / path).exists():
            text[path] = json.dumps([{"targets": [f"{host}:{port}" for host in hosts]}]) + "\n"
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
    """Yield (where, PromQL) of every panel, alert and recording rule."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query, _ in panel.queries:
                yield f"{dashboard.name}: {panel.title}", query
    for alert in ALERTS:
        yield f"alert {alert.name}", alert.query
    for name, query in RECORDED.items():
        yield f"recorded {name}", query
