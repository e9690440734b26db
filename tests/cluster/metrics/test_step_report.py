import json
import math
from pathlib import Path

from cluster.metrics import JsonLines
from tests.helpers.step_report import REPORT


def test_lines_are_plain_json_that_can_be_read_while_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with JsonLines(path) as lines:
        lines.write(REPORT)
        first = json.loads(path.read_text())
        lines.write({"event": "checkpoint", "values": [1.0, math.inf], "pair": (math.nan, 2)})
    assert first["loss"] == 0.5 and first["mfu"] is None and first["scale_loss"] == {"1x1": 0.7, "2x2": 0.6}
    with JsonLines(path) as lines:
        lines.write({"event": "resumed"})
    _, second, third = path.read_text().splitlines()
    assert json.loads(second) == {"event": "checkpoint", "values": [1.0, None], "pair": [None, 2]}
    assert json.loads(third) == {"event": "resumed"}
