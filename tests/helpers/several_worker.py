"""One rank that runs several training jobs in succession: `several_worker.py CONFIG CODE '{"RUN": ["key=value", ...]}'`.

Each job is pretrain.train's `run`, from opening the shards to the last checkpoint; they share only the process.
"""

from __future__ import annotations

import json
import sys

from cluster.config import load
from cluster.runtime.process_group import leave
from pretrain.train import run

if __name__ == "__main__":
    for folder, overrides in json.loads(sys.argv[3]).items():
        code = run(load(sys.argv[1], [f"run.dir={folder}", *overrides]))
        if code != int(sys.argv[2]):
            leave(3)
    leave(0)
