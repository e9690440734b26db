"""One rank that trains with compiled blocks and no C++ compiler: `compile_worker.py CONFIG '[["RUN", "key=value", ...], ...]'`.

Dynamo, its guards and autograd's functions are a GPU's; only code is not generated.
"""

from __future__ import annotations

import json
import sys

from cluster.config import load
from cluster.runtime.process_group import leave
from pretrain import train
from pretrain.model import fused_ops

if __name__ == "__main__":
    fused_ops.BACKEND = "aot_eager"
    train.check_compiler = lambda choice, device: None
    codes = [train.run(load(sys.argv[1], [f"run.dir={run}", *overrides])) for run, *overrides in json.loads(sys.argv[2])]
    print("codes", codes)
    leave(0)
