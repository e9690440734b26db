"""One rank that trains through bad steps: `trouble_worker.py CONFIG '[["RUN", "key=value", ...], ...]'`, one job after the other.

The loss of steps 6 and 7 is NaN, that of step 11 a thousand times too large, and the gradient of step 14 infinite.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from torch import Tensor

from cluster.config import load
from cluster.runtime.process_group import leave
from pretrain import train
from pretrain.loop import guard
from pretrain.objective.objective import Objective
from tests.helpers.skip_worker import Backwards

TROUBLE = {6: "nonfinite_loss", 7: "nonfinite_loss", 11: "loss_spike", 14: "nonfinite_gradient"}
HISTORY = 3
now = 0
limit, forward = guard.Guard.limit, Objective.forward


def noted_limit(self: guard.Guard, step: int, kind: guard.Kind) -> float:
    global now
    now = step
    return limit(self, step, kind)


def troubled_forward(self: Objective, *given: Any, **named: Any) -> dict[str, Tensor]:
    out = forward(self, *given, **named)
    factor = {"nonfinite_loss": math.nan, "loss_spike": 1e3}.get(TROUBLE.get(now, ""), 1.0)
    loss = out["loss"] * factor
    return out | {"loss": Backwards.apply(loss) if TROUBLE.get(now) == "nonfinite_gradient" else loss}


if __name__ == "__main__":
    guard.MIN_HISTORY = HISTORY
    guard.Guard.limit, Objective.forward = noted_limit, troubled_forward  # type: ignore[method-assign]
    codes = [train.run(load(sys.argv[1], [f"run.dir={run}", *overrides])) for run, *overrides in json.loads(sys.argv[2])]
    print("codes", codes)
    leave(0)
