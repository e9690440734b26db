"""DOC from cluster/metrics/meter.py."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from cluster.metrics.step_report import StepReport


class JsonLines:
    """Appends one JSON object a line and flushes it; the reader may follow the file while the job runs."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a")

    def write(self, record: StepReport | Mapping[str, Any]) -> None:
        """Write one record. NaN becomes null, so that every JSON reader takes the line."""
        plain = asdict(record) if isinstance(record, StepReport) else dict(record)
        self._file.write(json.dumps(_finite(plain), sort_keys=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
