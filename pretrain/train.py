"""The training job: what `deepspeed --module pretrain.train -c CFG [section.key=value ...]` starts on every rank.

In:  a configuration, token shards, the newest checkpoint of RUN if there is one.
Out: RUN/ with checkpoints, metrics.jsonl, samples; exit code 0 finished, 75 stopped cleanly with a checkpoint (SIGTERM, RUN/stop,
     train.stop_after: the same command continues), 2 a configuration that cannot run, 1 any other error.

    order ─▶ loader ─▶ forward ─▶ all-reduce ─▶ guard ─▶ backward ─▶ optimizer step ─▶ checkpoint
    (a pure function of the step) (loss, flags)  (the same verdict on all ranks)     └▶ one step later: ledger ─▶ report

Every rank takes the same path: what the loop decides depends only on the step and on sums over all ranks. The host launches a step
before it reads the sums of the one before, so a GPU never waits for it (ledger.py).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from cluster.config import Config, MetricsConfig, RunConfig, load
from cluster.metrics import Heartbeat, heartbeat
from cluster.runtime.errors import ErrorReport, is_ours, one_line
from cluster.runtime.file_lock import hold_run
from cluster.runtime.job_protocol import DONE, STOPPED, StopRequest
from cluster.runtime.process_group import Ranks, connect, disconnect, leave
from pretrain.checkpoint.train_state import TrainedStage, TrainState
from pretrain.checkpoint.writer import Checkpoints
from pretrain.data.config import CurriculumConfig
from pretrain.data.curriculum import Curriculum, counted
from pretrain.data.loader import Loader, LoaderConfig, StepData
from pretrain.data.sample_order import Order
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.deepspeed_config import check_compiler
from pretrain.engine.ema import Ema
from pretrain.engine.engine import Engine
from pretrain.engine.optimizer import learning_rate
from pretrain.estimate.flops import peak_flops
from pretrain.loop import resume
from pretrain.loop.compilation import CACHE, Compilations, use_cache
from pretrain.loop.guard import Guard
from pretrain.loop.job import Job, banner, build, enter_stage, open_datasets
from pretrain.loop.ledger import LaunchedStep, Ledger, kind_of
from pretrain.loop.periodic_samples import PeriodicSamples
from pretrain.loop.step_metrics import Clock, DeviceSums, StepFlags
from pretrain.loop.validation import Validation
from pretrain.loop.warm_up import WarmUp
from pretrain.model.config import ModelConfig
from pretrain.model.fused_ops import compiles
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.objective.sequence_parallel import SequenceGroups
from pretrain.runs import provenance, run_logger
from pretrain.runs.run_logger import RunLogger


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit code."""
    parser = argparse.ArgumentParser(prog="pretrain.train", description="One rank of a VideoAR training job.")
    parser.add_argument("-c", "--config", required=True, metavar="CFG", help="configuration file (YAML)")
    parser.add_argument("--local_rank", type=int, default=None, help="set by the launcher")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args(argv)
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    rank = int(os.environ.get("RANK", "0"))
    run_dir: Path | None = None
    code = DONE
    report = ErrorReport(f"error: rank {rank}: " if rank else "error: ", lambda: run_dir and run_logger.log_file(run_dir, rank))
    try:
        with report:
            config = load(arguments.config, arguments.overrides)
            run_dir = config.get(RunConfig).dir
            code = run(config)
        if report.error is None:
            return code
        if run_dir is not None:
            error = report.error
            run_logger.mark_failed(run_dir, one_line(error) if is_ours(error) else f"{type(error).__name__}: {error}")
        return report.code
    finally:
        disconnect()


def run(config: Config) -> int:
    """Train to the end of the curriculum, or to a request to stop. Returns the exit code.

    Rank 0 holds RUN/run.lock meanwhile: whoever holds it owns the run folder. Raises RunFolderError if another job does.
    """
    train, run_dir = config.get(TrainConfig), config.get(RunConfig).dir
    stop = StopRequest(run_dir, train.stop_after)
    ranks = connect(train.collective_timeout, train.threads)
    with ExitStack() as owned:
        lock = hold_run(run_dir)

        def take() -> Path:
            path = owned.enter_context(lock).path
            heartbeat.clear(run_dir)
            return path

        ranks.from_first(take)
        run_logger.begin_rank_log(run_dir, ranks.rank)
        beating = owned.enter_context(Heartbeat(run_dir, ranks.rank))
        return _run(config, ranks, stop, beating)


def _run(config: Config, ranks: Ranks, stop: StopRequest, beating: Heartbeat) -> int:
    train, model, run_dir = config.get(TrainConfig), config.get(ModelConfig), config.get(RunConfig).dir
    seed = config.get(RunConfig).seed
    datasets = open_datasets(config)
    data = counted(config.get(CurriculumConfig), datasets.spec)
    curriculum = Curriculum(data)
    provenance.agree(ranks.all_gather(provenance.identity(config, datasets.digest)), ranks.hosts)
    text = TextTokenizer.make(model)
    groups = SequenceGroups(ranks, curriculum.stages, model.heads, train.collective_timeout)

    with RunLogger(
        run_dir,
        ranks.rank,
        config.get(MetricsConfig),
        log_every=train.log_every,
        tensorboard=train.tensorboard,
        name=config.get(RunConfig).name,
    ) as logger:
        start = resume.find(config, data, datasets, ranks, logger.log)
        step = start.state.step
        if step >= curriculum.steps:
            logger.log(f"{run_dir}: finished, all {curriculum.steps} steps are trained (newest checkpoint {start.checkpoint})")
            return DONE
        if train.stop_after and step >= train.stop_after:
            logger.log(
                f"stopped: step {step} is trained and train.stop_after is {train.stop_after} (checkpoint {start.checkpoint})"
            )
            return STOPPED
        config, dtype = resume.settle_dtype(config, ranks, start.checkpoint)
        train = config.get(TrainConfig)
        logger.log(dtype.line)
        source = start.source(ranks, logger.log)
        check_compiler(model.compile, ranks.device)
        compiling = compiles(model.compile, ranks.device)
        if compiling:
            use_cache(train.compile_cache or run_dir / CACHE, ranks.first, logger.log)
        engine = Engine(
            lambda: build(config, datasets.spec, text), train, config.get(DeepSpeedConfig), ranks,
            seed=seed, universal=start.universal,
        )  # fmt: skip
        ema = Ema(train.ema) if train.ema else None
        guard = Guard(train.spike_sigma, train.max_skips, partial(logger.line, "skipped"))
        start.restore(source, engine, ema, guard)
        logger.begin(step)
        ranks.from_first(
            lambda: provenance.write_provenance(
                run_dir, config, data_digest=datasets.digest, hosts=ranks.hosts, resumed_from=step, dtype=dtype.line
            )
        )
        logger.status("running", step, curriculum.steps)
        for line in banner(config, curriculum, datasets, engine, step):
            logger.log(line)
        job = Job(
            config=config, data=data, curriculum=curriculum, datasets=datasets, ranks=ranks, groups=groups, stop=stop,
            logger=logger, heartbeat=beating, engine=engine, ema=ema, guard=guard,
            saver=Checkpoints(run_dir, ranks, train.keep_checkpoints, logger.log),
            validation=Validation.make(config, curriculum, text, ranks, groups, logger, datasets.spec),
            samples=PeriodicSamples(config, datasets, text, ranks, logger),
            compilations=Compilations(compiling),
            peak_flops=peak_flops(ranks.device, engine.dtype) * ranks.world,
        )  # fmt: skip
        job.samples.check(curriculum, engine.module)
        if start.checkpoint is not None:
            job.saver.keeper.sound.add(start.checkpoint.name)
        order = Order(seed, curriculum, {name: datasets.sources(name) for name in curriculum.streams()}, train.shuffle_window)
        loading = LoaderConfig(
            micro_batch=train.micro_batch, text_length=model.text_length, pack_tokens=train.pack_tokens,
            pack_above=train.pack_above, prefetch=train.prefetch, pin=ranks.device.type == "cuda",
        )  # fmt: skip
        steps = range(step + 1, curriculum.steps + 1)
        with Loader(datasets, order, text, loading, rank=ranks.rank, world=ranks.world, steps=steps) as loader:
            return loop(job, loader, start.state, WarmUp(compiling))


def loop(job: Job, loader: Loader, start: TrainState, warm_up: WarmUp) -> int:
    """Train one step after the other, to the end or to a request to stop. Returns the exit code."""
    config, ranks, engine, logger = job.config, job.ranks, job.engine, job.logger
    train, steps = config.get(TrainConfig), job.curriculum.steps
    step, clock, ledger = start.step, Clock(), Ledger(job, start.tokens)
    for item in loader:
        clock.mark("data")
        job.heartbeat.at(item.curriculum_step.step, "warm-up")
        if warm_up.before(job, item):
            clock.restart()
        at = item.curriculum_step
        job.heartbeat.at(at.step, "step")
        step, launched = at.step, launch(job, item, clock)
        ledger.report()  # of the step before
        ledger.add(launched)
        clock.mark("wait")

        job.saver.prepare(engine, job.ema)
        validate, sample = job.validation is not None and job.validation.due(at), job.samples.due(at)
        save = at.stage_ends or step % train.checkpoint_every == 0 or job.stop.planned(step) or ledger.stop
        if save or validate or sample or ledger.stop:
            job.heartbeat.at(step, "checkpoint" if save else "validation" if validate else "samples")
        if save or validate or sample:
            ledger.read()  # what a checkpoint holds of the guard includes this step
        if save or ledger.stop:
            state = replace(
                start, step=step, stage=at.stage_number, stage_ends=at.stage_ends, tokens=ledger.tokens,
                guard=job.guard.plain(), ema_start=None if job.ema is None else job.ema.start_share,
                trained=TrainedStage.of(config, job.curriculum, step, job.datasets.fps).plain(),
            )  # fmt: skip
            logger.meter.set("train_checkpoint_seconds", job.saver.save(engine, state, job.ema, config.yaml()))
        clock.mark("checkpoint")
        launched.seconds = clock.end()
        job.heartbeat.took(launched.seconds, engine.memory())

        if save or validate or sample or ledger.stop:
            ledger.report()
            if save and (validate or sample):
                job.saver.publish()  # whatever they meet, the checkpoint is whole
        if job.validation is not None and validate:
            job.heartbeat.at(step, "validation")
            logger.scalars(step, job.validation.run(engine, at))
        if sample:
            job.heartbeat.at(step, "samples")
            job.samples.make(engine, at)
        if ledger.stop:
            if ranks.first:
                job.stop.clear(partial(logger.aside, "stop"))
            job.saver.prove(step)
            why = "; ".join(sorted({reason for reason in ranks.all_gather(job.stop.reason) if reason}))
            logger.log(f"stopped after step {step} ({why}); run the same command to continue")
            logger.status("stopped", step, steps, why)
            return STOPPED
        job.heartbeat.at(step, "data")
        clock.restart()
    checkpoint = job.saver.prove(step)
    logger.status("finished", step, steps)
    logger.log(f"finished: {steps} steps, {ledger.tokens:,} tokens, checkpoint {checkpoint}")
    return DONE


def launch(job: Job, item: StepData, clock: Clock) -> LaunchedStep:
    """Queue forward, backward and update of a step; on a GPU, nothing here waits for it.

    The sums over ranks are made before the last backward, which is the last chance to drop the step on all ranks.
    """
    at, engine, totals = item.curriculum_step, job.engine, dict[str, Tensor]()
    rate, limit = learning_rate(at.step, job.config.get(TrainConfig), job.curriculum), job.guard.limit(at.step, kind_of(at))
    window, frame_mask = enter_stage(at, engine.module, job.config)
    for number, batch in enumerate(item.batches, 1):
        last, skip = number == len(item.batches), None
        out = engine.forward(batch.to(job.ranks.device), window, frame_mask, job.groups.of(at.stage), last=last)
        totals = {k: v.detach().double() + totals.get(k, 0.0) for k, v in out.items()}
        if last:
            stop = float(job.stop.asked(at.step))
            written, failed = job.saver.flags()
            compiled = job.compilations.new()
            if compiled:
                job.logger.log(f"step {at.step}: compiled {', '.join(compiled)}")
            flags = StepFlags(item.tokens, len(item.replaced), stop, written, failed, len(compiled))
            sums = DeviceSums(totals, job.ranks, flags)
            skip = job.guard.skip(sums.loss, limit)
        clock.mark("forward")
        engine.backward(out["loss"], skip=skip)
        clock.mark("backward")
    job.saver.before_update()
    outcome = engine.step(rate)
    if job.ema is not None:
        job.ema.update(engine.slices(), outcome.applied)
    sums.send(applied=outcome.applied, grad_norm=outcome.grad_norm)
    clock.mark("optimizer")
    return LaunchedStep(item, sums, rate, window, limit)


if __name__ == "__main__":
    leave(main())
