"""The report of one training step."""

import math

from cluster.metrics import StepReport

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
