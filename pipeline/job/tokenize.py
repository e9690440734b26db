"""`videoar tokenize`: the whole job on Ray, from a corpus to a finished SHARDS folder.

In:  the configuration.
Out: a SHARDS folder and a `Summary`. Run again = continue: what is committed is never made again.
Called by: the command line and `ray job submit` (which runs the same command), tests, the demo.

 driver: lock ▸ dataset.json ▸ list ▸ [plan tasks] ▸ merge ▸ [encode actors] ▸ index.parquet
A planning task looks at some videos and writes one part file; an encoding actor owns whole shard groups. Only paths,
numbers and reports pass through Ray; no pixel and no token does. SHARDS must be one folder for all hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from cluster.config import Config, MetricsConfig
from cluster.metrics import Meter
from cluster.runtime.progress import ProgressBar
from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.corpus.listing import find
from pipeline.job import dataset_json
from pipeline.job.dataset_json import dataset, defaults
from pipeline.job.ray_session import cluster
from pipeline.job.repair import _compare, _discard_damaged
from pipeline.job.summary import Run, Summary, describe, summarize
from pipeline.shards import layout
from pipeline.shards.commit_record import read_info
from pipeline.shards.layout import ADDRESS, INDEX, FolderLock
from pipeline.shards.manifest import Manifest
from pipeline.workers.encode_pool import Pool
from pipeline.workers.errors import JobError
from pipeline.workers.job_metrics import _COUNTED, Fallbacks, _count_videos, _publish
from pipeline.workers.plan_driver import plan
from tokenizer.codec import read_json
from tokenizer.config import TokenizerConfig
from tokenizer.quantization.codec_spec import CodecSpec


def tokenize(config: Config, *, retry: bool = False, repair: bool = False) -> Summary:
    """Run the job to its end.

    retry: videos that could not be probed and clips that could not be encoded get another try, in new shards.
    repair: check every byte first, and make damaged or missing shards again from their videos.
    Raises SourceError, FolderError (Locked, ConfigChanged), DiskFull, CodecError, JobError; nothing committed is lost.
    """
    pipeline = config.get(PipelineConfig)
    spec = _spec(config)
    with FolderLock(pipeline.output), _meter(config) as meter:
        layout.remove_leftovers(pipeline.output)
        dataset_json.begin(pipeline.output, dataset(config, spec), defaults())
        manifest = Manifest(pipeline.output)
        if manifest.generation() is None:
            _list(config.get(CorpusConfig), manifest, retry)
        damaged = _discard_damaged(manifest) if repair else {}
        # A finished folder needs no Ray.
        busy = manifest.generation() is not None or not all(manifest.committed(names) for _, names, _ in manifest.shards())
        with cluster(pipeline) if busy else nullcontext():
            if (videos := manifest.generation()) is not None:
                plan(videos, pipeline, manifest, meter)
            run = _encode(config, manifest, meter)
        # Of workers that died while the job went on.
        layout.remove_leftovers(pipeline.output)
        summary = summarize(pipeline.output, manifest, run)
        print(describe(summary), flush=True)
        _compare(manifest, damaged)
        return summary


def _spec(config: Config) -> CodecSpec:
    weights = config.get(TokenizerConfig).weights
    _, spec, _ = read_json(weights)
    for bucket in config.get(PipelineConfig).buckets:
        try:
            spec.grid(bucket.frames, bucket.height, bucket.width)
        except ValueError as error:
            raise JobError(f"pipeline.buckets: {bucket.name} does not fit the tokenizer {weights}: {error}") from error
    return spec


@contextmanager
def _meter(config: Config) -> Iterator[Meter]:
    metrics, folder = config.get(MetricsConfig), config.get(PipelineConfig).output
    meter = Meter()
    if metrics.enabled:
        address = meter.serve(metrics.host, metrics.port, folder / ADDRESS)
        print(f"metrics: http://{address}/metrics", flush=True)
    try:
        yield meter
    finally:
        meter.close()
        (folder / ADDRESS).unlink(missing_ok=True)


# ---- planning -----------------------------------------------------------------------------------------------------


def _list(corpus: CorpusConfig, manifest: Manifest, retry: bool) -> None:
    """List the corpus; videos without an outcome yet (and, with `retry`, quarantined ones) make a new generation."""
    known = manifest.known()
    again, clips = manifest.quarantined() if retry else (set(), [])
    listed = find(corpus)
    new = [video for video in listed if video.source not in known or video.source in again]
    print(
        f"corpus: {len(listed)} videos, {len(new)} of them to plan" + (f", {len(clips)} clips again" if retry else ""),
        flush=True,
    )
    if new or clips:
        (manifest.folder / INDEX).unlink(missing_ok=True)
        manifest.begin_generation(new, clips)


def _encode(config: Config, manifest: Manifest, meter: Meter) -> Run:
    pipeline = config.get(PipelineConfig)
    todo, clips_of, shards, ready = [], {}, 0, 0
    _count_videos(manifest, meter)
    for name in _COUNTED:
        meter.inc(name, 0)
    meter.inc("pipeline_decoder_deaths_total", 0, stage="encode")
    for group, names, clips in manifest.shards():
        shards += len(names)
        clips_of[group] = clips
        for name in names:
            if manifest.committed([name]):
                ready += 1
                _publish(read_info(manifest.folder / f"{name}.parquet"), meter)
        if not manifest.committed(names):
            todo.append(group)
    total = sum(clips_of.values())
    done = total - sum(clips_of[group] for group in todo)
    meter.set("pipeline_progress_ratio", ready / shards if shards else 1.0)
    run = Run()
    if not todo:
        return run
    (pipeline.output / INDEX).unlink(missing_ok=True)
    pool, fallbacks = Pool(config, todo, meter), Fallbacks(pipeline.decode_device, meter)
    try:
        with ProgressBar("encode", total, done=done) as progress:
            while pool.busy:
                for report in pool.wait():
                    run.add(report)
                    ready += len(report.infos)
                    for info in report.infos:
                        _publish(info, meter)
                    for stage, seconds in report.seconds.items():
                        meter.observe("pipeline_stage_seconds", seconds, stage=stage)
                    meter.inc("pipeline_decoder_deaths_total", report.decoder_deaths, stage="encode")
                    fallbacks.add("encode", report.software)
                    meter.set("pipeline_progress_ratio", ready / shards)
                    progress.update(clips_of[report.group], note=f"{ready}/{shards} shards, {run.refused} clips refused")
    finally:
        pool.close()
    return run
