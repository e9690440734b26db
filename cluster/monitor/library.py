"""All runs that the monitor shows, from folders and from Prometheus, each with its history in memory.

In:  the folders and the Prometheus that the user named. Out: values for JSON, by the name of a run.

Histories grow on request and in the background (`read_on`), so that a page answers at once, whatever has been read by then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.monitor import charts, facts, shards
from cluster.monitor.charts import View
from cluster.monitor.folders import NotThere, check, discover, inside
from cluster.monitor.history import History
from cluster.monitor.prometheus import Prometheus, PrometheusError

FILES = ("metrics.jsonl", "tokenizer-metrics.jsonl", "validation.jsonl")
PATIENCE = 0.02
"""Seconds that a request spends on reading new lines of one file."""
FROM_PROMETHEUS = "prometheus:"
"""Start of the names of runs that have no folder here."""
MOST_COMPARED = 8


class Library:
    """Raises NotThere for runs and files that are not shown, PrometheusError where Prometheus does not answer."""

    def __init__(
        self, folders: Sequence[Path], prometheus: str = "", rejects_page: Callable[[Path], str] | None = None
    ) -> None:
        """rejects_page: returns an HTML page with thumbnails of what a SHARDS folder refused."""
        check(folders)
        self.folders = list(folders)
        self.prometheus = Prometheus(prometheus) if prometheus else None
        self._rejects_page = rejects_page
        self._pages: dict[Path, tuple[int, str]] = {}
        self._histories: dict[Path, History] = {}
        self._lock = threading.Lock()
        self._page_lock = threading.Lock()

    def runs(self) -> dict[str, Any]:
        """Return the headline of each run, and what is wrong."""
        problems: list[str] = []
        rows = []
        for name, folder in discover(self.folders).items():
            own: list[str] = []
            training, tokenizer, _ = self._histories_of(folder)
            rows.append({"id": name, **facts.headline(folder, training, tokenizer, own)})
            problems += own
        if self.prometheus is not None:
            try:
                rows += [{"id": FROM_PROMETHEUS + run, **self.prometheus.headline(run)} for run in self.prometheus.runs()]
            except PrometheusError as error:
                problems.append(str(error))
        return {"runs": rows, "problems": problems, "looked_in": [str(folder) for folder in self.folders]}

    def run(self, name: str) -> dict[str, Any]:
        """Return what the page of a run shows besides its curves."""
        if (remote := self._remote(name)) is not None:
            source, run = remote
            return {"id": name, **source.headline(run), **source.overview(run), "shards": [], "problems": []}
        folder = self._folder(name)
        problems: list[str] = []
        training, tokenizer, validation = self._histories_of(folder)
        head = facts.headline(folder, training, tokenizer, problems)
        for history in (training, tokenizer, validation):
            if history.damaged:
                problems.append(f"{history.path}: {history.damaged} damaged lines are left out")
        places = shards.folders(folder, facts.settings(folder, problems))
        found = [shards.progress(place, problems) for place in places]
        return {"id": name, **head, **facts.overview(folder, problems), "shards": found, "problems": problems}

    def charts(self, name: str, view: View) -> list[dict[str, Any]]:
        """Return the charts of a run."""
        if (remote := self._remote(name)) is not None:
            return [chart.json() for chart in remote[0].charts(remote[1], view.width)]
        training, tokenizer, validation = self._histories_of(self._folder(name))
        found = [*charts.training(training, view), *charts.validation(validation, view), *charts.tokenizer(tokenizer, view)]
        return [chart.json() for chart in found]

    def compare(self, names: Sequence[str], view: View) -> dict[str, Any]:
        """Return loss and throughput of several runs, each over its own steps, and the settings that differ."""
        folders = [self._folder(name) for name in names[:MOST_COMPARED]]
        problems: list[str] = []
        curves = []
        for metric in ("loss", "tokens_per_second", "grad_norm"):
            found = [(name, charts.one(self._histories_of(folder)[0], view, metric)) for name, folder in zip(names, folders)]
            curves.append(
                {"name": metric, "runs": [{"id": name, **chart.json()} for name, chart in found if chart is not None]}
            )
        differing = facts.differing([facts.settings(folder, problems) for folder in folders]) if folders else []
        return {"ids": list(names[:MOST_COMPARED]), "charts": curves, "settings": differing, "problems": problems}

    def media(self, name: str, path: str) -> Path:
        """Return a video or picture of a run."""
        return inside(self._folder(name), path)

    def log(self, name: str, path: str) -> str:
        """Return the end of a log of a run."""
        return facts.tail(inside(self._folder(name), path, (".log", ".stacks")))

    def rejects(self, name: str, number: int) -> str:
        """Return the page of thumbnails of a run's SHARDS folder; kept until the rejects change."""
        folder = self._folder(name)
        places = shards.folders(folder, facts.settings(folder, []))
        if self._rejects_page is None or not 0 <= number < len(places):
            raise NotThere("no rejects in this run")
        place = places[number]
        with self._page_lock:  # one decoder at a time
            try:
                stamp = shards.changed(place, "rejects")
            except FileNotFoundError as error:
                raise NotThere("no rejects in this run") from error
            if self._pages.get(place, (0, ""))[0] != stamp:
                self._pages[place] = stamp, self._rejects_page(place)
            return self._pages[place][1]

    def read_on(self, stopping: threading.Event) -> None:
        """Read all histories, then what is added to them, until told to stop; in short turns, so that requests come in between."""
        while not stopping.is_set():
            done = [
                history.refresh(PATIENCE)
                for folder in discover(self.folders).values()
                for history in self._histories_of(folder, 0)
            ]
            stopping.wait(2.0 if all(done) else PATIENCE / 4)

    def _remote(self, name: str) -> tuple[Prometheus, str] | None:
        if self.prometheus is None or not name.startswith(FROM_PROMETHEUS):
            return None
        run = name.removeprefix(FROM_PROMETHEUS)
        if run not in self.prometheus.runs():
            raise NotThere("no such run")
        return self.prometheus, run

    def _folder(self, name: str) -> Path:
        try:
            return discover(self.folders)[name]
        except KeyError as error:
            raise NotThere("no such run") from error

    def _histories_of(self, folder: Path, patience: float = PATIENCE) -> list[History]:
        with self._lock:
            found = [self._histories.setdefault(folder / name, History(folder / name)) for name in FILES]
        if patience:
            for history in found:
                history.refresh(patience)
        return found
