"""A disk that fills while a shard is written: a real, small tmpfs in a mount namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_a_disk_that_fills_loses_nothing_that_was_finished(root: Path, tmp_path: Path) -> None:
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    command = [*namespace, sys.executable, "-m", "tests.helpers.fill_disk", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["before"] >= 1, "some shards were finished before the disk was full"
    assert found["message"].endswith("free some space and run again (nothing committed is lost)")
    assert found["committed"] == found["before"] and found["intact"], "finished shards stand, byte for byte"
    assert found["leftovers"] == [], "the half-written one left nothing behind"
    assert found["after"] == 24 and found["equal"], "with space again, the same shard is written whole"
