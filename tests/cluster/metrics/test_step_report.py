import json
import math
from pathlib import Path

from cluster.metrics import JsonLines, StepReport

REPORT = StepReport(
    step=3,
    stage=1,
    stage_name="videos",
    bucket="f009x64x64",
    loss=0.5,
    scale_loss={"1x1": 0.7, "2x2": 0.6},
    bit_accuracy={"1x1": 0.55, "2x2": 0.75},
    grad_norm=1.5,
    learning_rate=1e-4,
    tokens=640,
    seconds={"total": 2.0, "data": 0.25, "forward": 0.75},
    memory={"resident": 1000, "peak": 2000},
    skipped="nonfinite",
    mfu=math.nan,
)


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
