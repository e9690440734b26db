"""`videoar tokenize`: the whole job on Ray, from a corpus to a finished SHARDS folder.

In:  the configuration.
Out: a SHARDS folder and a `Summary`. Running it again resumes: what is committed is not computed again.

 driver: lock ▸ dataset.json ▸ list videos ▸ [planning tasks] ▸ merge ▸ [encoding actors] ▸ index
A planning task looks at some videos and writes one part file; an encoding actor owns whole shard groups. Only paths, numbers and
reports pass through Ray, no pixels and no tokens. SHARDS must be one folder that all hosts see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from cluster.config import Config, MetricsConfig, RunConfig
from cluster.metrics import Endpoint, Meter
from cluster.metrics.endpoint import TARGET
from cluster.runtime.job_protocol import STOPPED
from cluster.runtime.progress import ProgressBar
from pipeline.books.index import finish
from pipeline.books.tasks import Runner, serially
from pipeline.books.upgrade import upgrade
from pipeline.config import PipelineConfig
from pipeline.job import dataset_json, generations, ray_session
from pipeline.job.repair import check_repaired, discard_damaged
from pipeline.job.summary import RunTotals, Summary, describe, summarize
from pipeline.shards import layout
from pipeline.shards.commit_record import read_info
from pipeline.shards.layout import ADDRESS, INDEX, FolderLock, open_table, remove_index
from pipeline.shards.manifest import Manifest
from pipeline.workers.book_tasks import on_ray
from pipeline.workers.encode_pool import Pool
from pipeline.workers.errors import JobError
from pipeline.workers.job_metrics import Fallbacks, count_plan, count_shard
from pipeline.workers.plan_driver import plan_videos
from tokenizer.codec import read_json
from tokenizer.config import TokenizerConfig
from tokenizer.quantization.codec_spec import CodecSpec


def tokenize(config: Config, *, retry: bool = False, repair: bool = False, recaption: bool = False) -> Summary:
    """Run the job to its end.

    retry: videos that could not be probed and clips that could not be encoded get another attempt, in new shards.
    recaption: captions that have changed since are put into the shards, without encoding anew.
    repair: check every byte first, and encode damaged or missing shards again from their videos.
    Raises CorpusError, FolderError (Locked, ConfigChanged), DiskFull, CodecError, JobError; nothing committed is lost.
    """
    spec = _spec(config)
    pipeline = config.get(PipelineConfig)
    output = ray_session.resolved_output(pipeline.output)
    config = config.replaced(pipeline.model_copy(update={"output": output}))
    print(f"output: {output}", flush=True)
    with ray_session.stoppable(output), FolderLock(config.get(PipelineConfig).output), _meter(config) as meter:
        config = dataset_json.settled(config)
        pipeline = config.get(PipelineConfig)
        layout.remove_leftovers(pipeline.output)
        if done := upgrade(pipeline.output):
            print(f"books: {', '.join(done)} made into format 2", flush=True)
        dataset_json.begin(pipeline.output, dataset_json.dataset(config, spec), dataset_json.defaults())
        manifest = Manifest(pipeline.output)
        generation = generations.begin(config, manifest, retry=retry, recaption=recaption)
        damaged = discard_damaged(manifest) if repair and generation is None else {}
        # A finished folder needs no Ray.
        busy = generation is not None or not all(manifest.committed(names) for _, names, _ in manifest.shards())
        run = partial(on_ray, work="books") if busy else serially
        # Ray puts a handler of its own for SIGTERM, so ours is put again.
        with ray_session.session(pipeline) if busy else nullcontext(), ray_session.stoppable(output):
            if generation is not None:
                plan_videos(generation, pipeline, manifest, meter)
            totals = encode_groups(config, manifest, meter, run)
            digest = finished(manifest, run)
            summary = summarize(pipeline.output, manifest, totals, digest, run)
        # Left by workers that died during the job.
        layout.remove_leftovers(pipeline.output)
        print(describe(summary), flush=True)
        check_repaired(manifest, damaged)
        print(f"output: {output}", flush=True)
        return summary


def finished(manifest: Manifest, run: Runner) -> str:
    """Write the index, unless it is there: what changes a shard removes it first. Returns the digest."""
    index = open_table(manifest.folder, INDEX)
    return finish(manifest, run) if index is None else str(index.meta["digest"])


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
    meter, endpoint, well, stopped = Meter(), None, False, False
    meter.begin("pipeline_")
    meter.watch_disk(folder)
    if metrics.enabled:
        endpoint = Endpoint(meter, metrics, folder, config.get(RunConfig).name)
        print(f"metrics: http://{endpoint.address}/metrics", flush=True)
    try:
        yield meter
        well = True
    except SystemExit as end:
        well = stopped = end.code == STOPPED
        raise
    finally:
        if endpoint is not None:
            endpoint.close(well=well, wait=not stopped)  # Ray kills a job 3 s after it asked it to stop
        (folder / ADDRESS).unlink(missing_ok=True)
        if well:
            (folder / TARGET).unlink(missing_ok=True)


def encode_groups(config: Config, manifest: Manifest, meter: Meter, run: Runner = serially) -> RunTotals:
    """Encode all groups that are not committed, counting the shards that are; returns what this run did."""
    pipeline = config.get(PipelineConfig)
    todo, clips_of, shards, ready = [], {}, 0, 0
    count_plan(manifest, meter, run)
    for group, names, clips in manifest.shards():
        shards += len(names)
        clips_of[group] = clips
        for name in names:
            if manifest.committed([name]):
                ready += 1
                count_shard(read_info(manifest.folder / f"{name}.parquet"), meter)
        if not manifest.committed(names):
            todo.append(group)
    total = sum(clips_of.values())
    done = total - sum(clips_of[group] for group in todo)
    meter.set("pipeline_progress_ratio", ready / shards if shards else 1.0)
    totals = RunTotals()
    if not todo:
        return totals
    remove_index(pipeline.output)
    pool, fallbacks = Pool(config, todo, meter), Fallbacks(pipeline.decode_device, meter)
    try:
        with ProgressBar("encode", total, done=done) as progress:
            while pool.busy:
                for report in pool.wait():
                    totals.add(report)
                    ready += len(report.infos)
                    for info in report.infos:
                        count_shard(info, meter)
                    for stage, seconds in report.seconds.items():
                        meter.observe("pipeline_stage_seconds", seconds, stage=stage)
                    meter.inc("pipeline_decoder_deaths_total", report.decoder_deaths, stage="encode")
                    fallbacks.add("encode", report.software)
                    meter.set("pipeline_progress_ratio", ready / shards)
                    progress.update(clips_of[report.group], note=f"{ready}/{shards} shards, {totals.refused} clips refused")
    finally:
        pool.close()
    return totals
