"""Prometheus and Alertmanager as Debian packages them, for tests: found, started, asked, ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.runtime.ports import free_port
from tests.helpers.tools import lacking

PATIENCE = 90.0
"""Seconds after which nothing more is expected."""


def program(name: str) -> str:
    """Return the path of a program; without it, the test does not pass."""
    found = shutil.which(name)
    if found is None:
        lacking(name, "prometheus prometheus-alertmanager prometheus-node-exporter")
    return str(found)


@contextmanager
def started(words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block."""
    with log.open("wb") as out, subprocess.Popen(words, stdout=out, stderr=out) as server:
        try:
            yield server
        finally:
            server.terminate()


def hurried(folder: Path, alerts: str) -> Path:
    """Shorten every interval of the written files to what a test can wait for; returns Prometheus's file.

    Prometheus takes note of a target that went up to 10 seconds later: that long it looks like a job that died.
    """
    config = folder / "prometheus.yml"
    config.write_text(config.read_text().replace("10s", "500ms").replace("15s", "1s").replace("127.0.0.1:9093", alerts))
    rules = yaml.safe_load((folder / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["for"] = "15s" if rule["alert"] == "VideoarJobDead" else rule["for"]
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules, width=1000))
    routes = folder / "alertmanager.yml"
    routes.write_text(routes.read_text().replace("30s", "1s").replace("5s", "1s").replace("5m", "1s"))
    return config


@contextmanager
def prometheus(config: Path, folder: Path, names: Path | None = None) -> Iterator[str]:
    """Run Prometheus; yields its URL. names: read in the place of /etc/hosts (needs root)."""
    url = f"127.0.0.1:{free_port()}"
    words = [
        program("prometheus"),
        f"--config.file={config}",
        f"--web.listen-address={url}",
        f"--storage.tsdb.path={folder}/db",
    ]
    if names is not None:
        words = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(names), *words]
    with started(words, folder / "prometheus.log"):
        yield f"http://{url}"


@contextmanager
def alertmanager(config: Path, folder: Path, address: str) -> Iterator[None]:
    """Run Alertmanager at HOST:PORT."""
    words = [
        program("prometheus-alertmanager"), f"--config.file={config}", f"--web.listen-address={address}",
        f"--storage.path={folder}/alertmanager", "--cluster.listen-address=",
    ]  # fmt: skip
    with started(words, folder / "alertmanager.log"):
        yield


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """Return the results of an instant query. Raises OSError while nobody answers."""
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=10) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def until(url: str, query: str, *, found: bool = True) -> list[dict[str, Any]]:
    """Ask until the query has a result, or has none."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if bool(result := ask(url, query)) == found:
                return result
        except OSError:
            pass  # not listening yet
        time.sleep(0.2)
    raise AssertionError(f"{query}: {'no' if found else 'still a'} result after {PATIENCE:g} s")
