import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from cluster.cli import main
from cluster.config import MetricsConfig
from cluster.metrics import METRICS, Endpoint, Meter, heartbeat
from cluster.monitoring.alerts import ALERTS
from cluster.monitoring.dashboards import DASHBOARDS, DashboardError, known_series, metrics_in, queries, write
from cluster.monitoring.host_panels import EXTERNAL
from cluster.runtime.ports import free_port
from tests.helpers.prometheus import ask, program, prometheus, started, until


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
    known = {"run", "instance", "job", "le", "gpu", "mode", "mountpoint"}
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
    target = [{"targets": ["127.0.0.1:9400"], "labels": {"run": "trial", "id": "abc123"}}]
    (run / "metrics-target.json").write_text(json.dumps(target))
    paths = write(tmp_path / "out", [run])
    assert all(path.is_file() for path in paths) and not list((tmp_path / "out").rglob("*.tmp"))
    assert json.loads((tmp_path / "out/prometheus/targets/trial-abc123.json").read_text()) == target
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
    with pytest.raises(DashboardError, match=r"metrics-target\.json: No such file"):
        write(tmp_path / "out", [tmp_path])
    (tmp_path / "metrics-target.json").write_text('[{"targets": ["nonsense"], "labels": {"run": "a", "id": "b"}}]')
    assert main.run(["dashboards", str(tmp_path / "out"), str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"videoar: {tmp_path}/metrics-target.json: not a target with HOST:PORT and the labels run and id; start the job again\n"
    )


def test_a_dashboard_of_runs_shows_one_run_and_hosts_are_kept(tmp_path: Path) -> None:
    write(tmp_path, hosts=["node1", "node2"])
    write(tmp_path)
    assert json.loads((tmp_path / "prometheus/hosts/node.json").read_text()) == [{"targets": ["node1:9100", "node2:9100"]}]
    for dashboard in DASHBOARDS:
        model = json.loads((tmp_path / f"grafana/{dashboard.name}.json").read_text())
        variable = model["templating"]["list"][1]
        assert (variable["multi"], variable["includeAll"]) == ((dashboard.variable == "instance",) * 2)
        for panel in dashboard.panels:
            assert all(f'{dashboard.variable}=~"${dashboard.variable}"' in query for query, _ in panel.queries), panel.title


@contextmanager
def dcgm() -> Iterator[str]:
    """Serve what DCGM's exporter does, of one GPU: there is no card here."""
    lines = "".join(f'{name}{{gpu="0"}} 1\n' for name in sorted(EXTERNAL) if name.startswith("DCGM_"))

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(lines.encode())

        def log_message(self, format: str, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def every_metric(run: Path) -> Iterator[Meter]:
    """Serve one value of each declared metric."""
    meter = Meter()
    with heartbeat.Heartbeat(run, 0) as beat:
        beat.at(1, "step")
        meter.listen(run)
        meter.watch_disk(run)
        for name, metric in METRICS.items():
            if "rank" not in metric.labels and not name.startswith("disk_"):
                labels = {label: "refused" if label == "outcome" else "1" for label in metric.labels}
                {"gauge": meter.set, "counter": meter.inc, "histogram": meter.observe}[metric.kind](name, 0.5, **labels)
        endpoint = Endpoint(meter, MetricsConfig(port=0), run, "trial")
        try:
            yield meter
        finally:
            endpoint.close(well=False)


@pytest.mark.system
def test_prometheus_takes_the_files_and_answers_every_panel(tmp_path: Path) -> None:
    """The run's series from a Meter, the hosts' from the real node_exporter, the GPUs' faked: no panel of any dashboard is empty."""
    run, out = tmp_path / "trial", tmp_path / "out" / "prometheus"
    run.mkdir()
    exporter = f"127.0.0.1:{free_port()}"
    node = [program("prometheus-node-exporter"), f"--web.listen-address={exporter}"]
    with every_metric(run) as meter, dcgm() as gpus, started(node, tmp_path / "node.log"):
        write(tmp_path / "out", [run])
        (out / "hosts" / "node.json").write_text(json.dumps([{"targets": [exporter]}]))
        (out / "hosts" / "dcgm.json").write_text(json.dumps([{"targets": [gpus]}]))
        config, rules = out / "prometheus.yml", out / "alerts.yml"
        for words in (["check", "config", str(config)], ["check", "rules", str(rules)]):
            done = subprocess.run([program("promtool"), *words], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        config.write_text(config.read_text().replace("scrape_interval: 10s", "scrape_interval: 1s").replace("15s", "1s"))
        with prometheus(config, tmp_path) as url:
            until(url, 'count_over_time(up{run="trial"}[1m]) >= 3')
            meter.inc("pipeline_clips_total", 3, outcome="refused", reason="1")
            until(url, "count(count_over_time(up[1m]) >= 3) == 3")
            for where, query in queries():
                plain = query.replace("$__rate_interval", "1m").replace("$run", "trial").replace("$instance", ".*")
                if where.startswith("alert"):
                    ask(url, plain)
                else:
                    until(url, plain)
