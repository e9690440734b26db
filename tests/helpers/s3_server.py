"""moto's S3 server on loopback behind a layer that fails on schedule: for test_s3.py and benchmarks/proof_s3.py."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from cluster.runtime.atomic_files import write_json
from pipeline.books.index import finish
from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.corpus.listing import find
from pipeline.decoding.process import DecoderProcess
from pipeline.encoding.encoder import GroupEncoder
from pipeline.maintenance.verify import verify
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.manifest import Manifest
from tests.helpers.fakes import FakeCodec

KINDS = ("throttled", "failed", "dropped", "broken")
"""503 SlowDown; 500 InternalError; the connection closed without an answer; the answer's body broken off midway."""
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>made up</Message></Error>"


class Unreliable:
    """WSGI layer: every `every`-th request fails (0: none), each time with the next kind of fault."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.every, self.counts = app, 0, Counter[str]()
        self._lock = threading.Lock()

    @property
    def faults(self) -> int:
        """Requests that failed."""
        return sum(self.counts[kind] for kind in KINDS)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.counts["requests"] += 1
            number = self.counts["requests"]
            kind = KINDS[number // self.every % len(KINDS)] if self.every and number % self.every == 0 else ""
            if kind == "broken" and environ["REQUEST_METHOD"] != "GET":
                kind = "dropped"
            if kind:
                self.counts[kind] += 1
        if kind in ("throttled", "failed"):
            code, status = (
                ("SlowDown", "503 Slow Down") if kind == "throttled" else ("InternalError", "500 Internal Server Error")
            )
            body = _ERROR.format(code).encode()
            start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        if kind == "dropped":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start("200 OK", [])
            return []
        answer = self.app(environ, start)
        if kind == "broken":
            whole = b"".join(answer)
            return [whole[: len(whole) // 2]]
        return answer


class _Quiet(WSGIRequestHandler):
    def log(self, kind: str, message: str, *args: object) -> None:
        """Say nothing."""

    def connection_dropped(self, error: BaseException, environ: dict[str, Any] | None = None) -> None:
        """Say nothing: it was dropped on purpose."""


@contextlib.contextmanager
def serving(environ: Any) -> Iterator[Unreliable]:
    """Serve an empty S3 for as long as the context lasts; `environ` (os.environ or a stand-in) gets its address and keys."""
    app = Unreliable(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
    environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield app
    finally:
        server.shutdown()
        server.server_close()
        s3fs.S3FileSystem.clear_instance_cache()


def fill(bucket: str, files: Iterable[tuple[str, bytes]]) -> None:
    """Make a bucket with these files."""
    filesystem = s3fs.S3FileSystem()
    filesystem.mkdir(bucket)
    for name, data in files:
        filesystem.pipe(f"{bucket}/{name}", data)


def job(corpus: str, shards: Path) -> tuple[str, dict[str, str], int]:
    """Plan and encode a corpus without Ray. Returns digest, xxh3 of the bits by sample key, number of videos."""
    s3fs.S3FileSystem.clear_instance_cache()
    config = PipelineConfig(output=shards, buckets=(Bucket(frames=5, height=32, width=32),), dedup=False, min_free_gb=0)
    manifest = Manifest(shards)
    sources = find(CorpusConfig(videos=(corpus,)))
    generation = manifest.begin_generation(sources)
    with DecoderProcess(config.limits) as decoder:
        write_part(manifest.part(0), [plan_video(source, config, decoder) for source in sources])
    merge(manifest, generation, config, 1)
    buckets = [bucket.name for bucket in config.buckets]
    write_json(
        shards / "dataset.json",
        {"format": 1, "spec": FakeCodec.spec.plain(), "fps": config.fps, "buckets": buckets, "features": False},
    )
    encoder = GroupEncoder(shards, config, FakeCodec())
    for group in range(manifest.groups()):
        encoder.encode(group)
    encoder.close()
    digest = finish(manifest)
    report = verify(shards)
    assert report.sound, report.problems
    rows = ShardDataset.open(shards).rows(config.buckets[0]).to_pylist()
    return digest, {f"{row['key']} {row['caption']}": row["bits_xxh3"] for row in rows}, report.videos
