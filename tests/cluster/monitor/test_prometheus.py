from __future__ import annotations

import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.monitor.folders import MonitorError
from cluster.monitor.prometheus import Prometheus, PrometheusError

RUN = 'odd "name"'


class Fake(BaseHTTPRequestHandler):
    """Answers as Prometheus does to what is asked of it."""

    answer = True

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(parts.query).get("query", [""])[0]
        assert not query or f"run={json.dumps(RUN)}" in query
        now = time.time()
        place = {"run": RUN, "instance": "host:1", "job": "videoar"}
        if parts.path.endswith("/values"):
            data: object = [RUN]
        elif parts.path.endswith("query_range"):
            rows = [
                {"metric": {"scale": scale, **place}, "values": [[now - 60, "0.5"], [now, value]]}
                for scale, value in (("1x1", "0.4"), ("2x2", "NaN"))
            ]
            data = {"result": rows if "scale_loss" in query else []}
        else:
            series = [
                ("videoar_train_step", {}, 7), ("videoar_train_loss", {}, 0.5),
                ("videoar_train_heartbeat_timestamp_seconds", {"rank": "0"}, now - 1),
                ("videoar_train_heartbeat_timestamp_seconds", {"rank": "10"}, now - 500),
                ("videoar_train_heartbeat_timestamp_seconds", {"rank": "2"}, now - 1),
                ("videoar_pipeline_clips_total", {"outcome": "encoded"}, 3),
            ] if "videoar_" in query else [("up", {}, 1)]  # fmt: skip
            data = {
                "result": [
                    {"metric": {"__name__": name, **labels, **place}, "value": [now, str(value)]}
                    for name, labels, value in series
                ]
            }
        body = json.dumps({"status": "success", "data": data}).encode() if self.answer else b"<html>"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def source() -> Iterator[Prometheus]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Prometheus(f"http://127.0.0.1:{server.server_address[1]}/")
    server.shutdown()
    server.server_close()


def test_runs_values_and_ranks(source: Prometheus) -> None:
    assert source.runs() == [RUN]
    head = source.headline(RUN)
    assert (head["state"], head["step"], head["loss"]) == ("scraped", 7.0, 0.5)
    shown = source.overview(RUN)
    assert [row["rank"] for row in shown["ranks"]] == ["0", "2", "10"]
    assert [round(row["heartbeat age, s"], -1) for row in shown["ranks"]] == [0, 0, 500]
    assert {"name": "pipeline_clips_total", "labels": "outcome=encoded", "value": 3.0} in shown["values"]


def test_charts_over_time(source: Prometheus) -> None:
    (chart,) = source.charts(RUN, 300)
    assert chart.name == "scale_loss" and chart.time and len(chart.x) >= 2
    assert [label for label, _ in chart.curves] == ["1x1", "2x2"]
    assert 0.4 in chart.curves[0][1] and None in chart.curves[1][1]


def test_no_answer_is_one_clear_error(source: Prometheus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "answer", False)
    with pytest.raises(PrometheusError, match=r"http://127.0.0.1:\d+/: no answer as of a Prometheus"):
        source.runs()
    with pytest.raises(PrometheusError, match=r"http://127.0.0.1:9: no answer"):
        Prometheus("http://127.0.0.1:9").runs()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:9090", "http://", "ftp://host"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(MonitorError, match=r"give an address such as http"):
        Prometheus(url)
