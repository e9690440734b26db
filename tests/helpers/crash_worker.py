"""One rank of a training job whose model gets a wrong shape on one rank: `crash_worker.py RANK -c CONFIG [overrides]`.

An error of torch's own, in the middle of a step, as a bug in the model would raise it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from cluster.runtime.process_group import leave
from pretrain.model.transformer import VideoAR
from pretrain.train import main


def wrong_forward(self: VideoAR, *given: Any, **named: Any) -> None:
    torch.ones(2, 3) @ torch.ones(4, 5)


if __name__ == "__main__":
    if os.environ["RANK"] == sys.argv[1]:
        VideoAR.forward = wrong_forward  # type: ignore[method-assign,assignment]
    leave(main(sys.argv[2:]))
