import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import main
from cluster.metrics import METRICS, Meter
from cluster.monitoring.alerts import ALERTS
from cluster.monitoring.dashboards import DashboardError, known_series, metrics_in, queries, write
from cluster.monitoring.panels import DASHBOARDS
from cluster.runtime.ports import free_port


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ('rate(a_total{run=~"$run",x="b_c"}[$__rate_interval])', {"a_total"}),
        ("sum by (run, le) (a) / on (run) group_left (c) sum(b) > 0.5", {"a", "b"}),
        ("time() - max(a) offset 5m unless b or c and d > 1e3", {"a", "b", "c", "d"}),
        ("histogram_quantile(0.9, sum(rate(a_bucket[5m])) without (rank))", {"a_bucket"}),
        ('label_replace(a, "x", \'y\', "z", "(.*)") == bool 1 - inf', {"a"}),
        ("2 * a{} ^ 2", {"a"}),
    ],
)
def test_finds_the_metrics_of_a_query(query: str, names: set[str]) -> None:
    assert metrics_in(query) == names


def test_every_query_names_declared_metrics_only() -> None:
    for where, query in queries():
        assert metrics_in(query), where
        assert metrics_in(query) <= known_series(), where


def test_counters_are_read_as_total_and_histograms_by_their_parts() -> None:
    series = known_series()
    assert "videoar_train_tokens_total" in series and "videoar_train_tokens" not in series
    assert "videoar_pipeline_stage_seconds" not in series
    assert {f"videoar_pipeline_stage_seconds_{end}" for end in ("bucket", "sum", "count")} <= series


def test_every_declared_metric_is_shown_somewhere() -> None:
    shown = set().union(*(metrics_in(query) for _, query in queries()))
    hidden = [name for name, metric in METRICS.items() if not any(series.startswith(metric.exported) for series in shown)]
    assert not hidden


def test_labels_in_queries_and_legends_are_declared() -> None:
    known = {"run", "instance", "job", "le"}
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query, legend in panel.queries:
                declared = {
                    label for name, metric in METRICS.items() for label in metric.labels if metric.exported in query
                } | known
                used = set(re.findall(r"\{\{(\w+)\}\}", legend)) | set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', query))
                assert used <= declared, f"{panel.title}: {used - declared}"


def test_writes_files_that_load(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "trial"
    run.mkdir(parents=True)
    (run / "metrics-address").write_text("127.0.0.1:9400\n")
    paths = write(tmp_path / "out", [run])
    assert all(path.is_file() for path in paths) and not list((tmp_path / "out").rglob("*.tmp"))
    assert json.loads((tmp_path / "out/prometheus/targets/trial.json").read_text()) == [
        {"targets": ["127.0.0.1:9400"], "labels": {"run": "trial"}}
    ]
    for dashboard in DASHBOARDS:
        model = json.loads((tmp_path / f"out/grafana/{dashboard.name}.json").read_text())
        assert model["uid"] == dashboard.name and len(model["panels"]) == len(dashboard.panels)
        taken: set[tuple[int, int]] = set()
        for panel in model["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not cells & taken and place["x"] + place["w"] <= 24, f"{panel['title']} lies over another panel"
            taken |= cells
            assert panel["description"] and all(target["expr"] for target in panel["targets"])
        assert len({panel["id"] for panel in model["panels"]}) == len(model["panels"])
    rules = yaml.safe_load((tmp_path / "out/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == [alert.name for alert in ALERTS]
    assert all(rule["annotations"]["mend"] and rule["labels"]["severity"] in {"page", "ticket"} for rule in rules)


def test_a_run_without_an_address_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DashboardError, match="metrics-address: No such file"):
        write(tmp_path / "out", [tmp_path])
    (tmp_path / "metrics-address").write_text("nonsense\n")
    assert main.run(["dashboards", str(tmp_path / "out"), str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"videoar: {tmp_path}/metrics-address: `nonsense` is not HOST:PORT\n"


@contextmanager
def every_metric() -> Iterator[tuple[Meter, str]]:
    """Serve one value of each declared metric."""
    meter = Meter()
    for name, metric in METRICS.items():
        labels = {label: "refused" if label == "outcome" else "1" for label in metric.labels}
        {"gauge": meter.set, "counter": meter.inc, "histogram": meter.observe}[metric.kind](name, 0.5, **labels)
    address = meter.serve("127.0.0.1", 0)
    try:
        yield meter, address
    finally:
        meter.close()


def ask(url: str, query: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@pytest.mark.system
def test_prometheus_takes_the_files_and_answers_every_panel(tmp_path: Path) -> None:
    """With Debian's prometheus installed; without it, the tests above have read the queries with our own extractor."""
    run = tmp_path / "trial"
    run.mkdir()
    with every_metric() as (_, address):
        (run / "metrics-address").write_text(address)
        write(tmp_path / "out", [run])
        config = tmp_path / "out/prometheus/prometheus.yml"
        rules = tmp_path / "out/prometheus/alerts.yml"
        if (promtool := shutil.which("promtool")) is not None:
            for words in (["check", "config", str(config)], ["check", "rules", str(rules)]):
                done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stdout + done.stderr
        if (program := shutil.which("prometheus")) is None:
            return
        config.write_text(config.read_text().replace("scrape_interval: 10s", "scrape_interval: 1s"))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        words = [
            program,
            f"--config.file={config}",
            f"--web.listen-address=127.0.0.1:{port}",
            f"--storage.tsdb.path={tmp_path}/db",
        ]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                wait_for(server, url, 'count_over_time(up{run="trial"}[1m]) >= 3')
                for where, query in queries():
                    plain = query.replace("$__rate_interval", "1m").replace("$run", ".*")
                    found = ask(url, plain)
                    assert found["status"] == "success", where
                    if not where.startswith("alert"):
                        assert found["data"]["result"], f"{where}: {plain} finds nothing"
            finally:
                server.terminate()


def wait_for(server: subprocess.Popen[bytes], url: str, query: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if ask(url, query)["data"]["result"]:
                return
        except OSError:
            pass  # not listening yet
        try:
            raise AssertionError(f"prometheus ended with {server.wait(timeout=0.3)}")
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"no result of {query} in 60 s")
