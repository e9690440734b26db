"""The training job: what `deepspeed --module pretrain.train -c CFG [section.key=value ...]` starts on every rank.

In:  a configuration, token shards, the newest checkpoint of RUN when there is one.
Out: RUN/ with checkpoints, metrics.jsonl, samples; exit code 0 finished, 75 stopped cleanly with a checkpoint (SIGTERM, RUN/stop,
     train.stop_after: run the same command again), 2 a configuration that cannot run, 1 any other error.
Called by: the deepspeed launcher, `videoar train`, `videoar launch`.

    order ─▶ loader ─▶ forward ─▶ sum over ranks ─▶ verdict ─▶ backward ─▶ optimizer step ─▶ report ─▶ checkpoint
    (a pure function of the step)    (loss, flags)   (the same on all ranks)
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cluster.config import Config, ConfigError, MetricsConfig, RunConfig, load
from cluster.metrics import MetricsPortError, StepReport
from cluster.runtime import checkpoint_folders
from cluster.runtime.exit_codes import STOPPED
from cluster.runtime.process_group import connect, disconnect, leave
from pretrain.checkpoint import reader, train_state, writer
from pretrain.checkpoint.train_state import TrainState
from pretrain.checkpoint.writer import CHECKPOINTS
from pretrain.data.config import CurriculumConfig
from pretrain.data.curriculum import Curriculum, CurriculumError, CurriculumStep, Streams, counted
from pretrain.data.loader import Loader, LoaderConfig
from pretrain.data.sample_order import Order
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.config import DeepSpeedConfig, TrainConfig
from pretrain.engine.deepspeed_config import EngineError, check_compiler, zero_stage
from pretrain.engine.ema import Ema
from pretrain.engine.engine import Engine
from pretrain.engine.lr_schedule import learning_rate
from pretrain.estimate import hardware
from pretrain.loop.guard import Guard
from pretrain.loop.periodic_samples import Showcase
from pretrain.loop.preemption import StopRequest
from pretrain.loop.startup_banner import banner
from pretrain.loop.step_metrics import Clock, Figures, read_ids, step_flops
from pretrain.loop.validation import Validation
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig, stage_objective
from pretrain.objective.objective import Objective
from pretrain.objective.sequence_parallel import SequenceGroups
from pretrain.runs import provenance, run_files
from pretrain.runs.run_logger import Journal
from tokenizer.quantization.codec_spec import CodecSpec


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit code."""
    parser = argparse.ArgumentParser(prog="pretrain.train", description="One rank of a VideoAR training job.")
    parser.add_argument("-c", "--config", required=True, metavar="CFG", help="configuration file (YAML)")
    parser.add_argument("--local_rank", type=int, default=None, help="set by the launcher")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args(argv)
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    config: Config | None = None
    try:
        config = load(arguments.config, arguments.overrides)
        return run(config)
    except (ValueError, OSError, RuntimeError) as error:
        rank = int(os.environ.get("RANK", "0"))
        if config is not None:
            run_files.mark_failed(config.get(RunConfig).dir, str(error))
        print(f"error: {f'rank {rank}: ' if rank else ''}{error}", file=sys.stderr, flush=True)
        return (
            2
            if isinstance(error, ConfigError | EngineError | CurriculumError | MetricsPortError | train_state.ResumeError)
            else 1
        )
    finally:
        disconnect()


def run(config: Config) -> int:
    """Train to the end of the curriculum, or to a request to stop. Returns the exit code."""
    train, deepspeed, folder = config.get(TrainConfig), config.get(DeepSpeedConfig), config.get(RunConfig).dir
    seed = config.get(RunConfig).seed
    data = config.get(CurriculumConfig)
    stop = StopRequest(folder, train.stop_after)
    ranks = connect(train.collective_timeout, train.threads)
    folders = data.shards or (Path(config.plain()["pipeline"]["output"]),)
    corpus = TokenDatasets.open(folders, Streams(data), data.weights, cache=data.cache, cache_gb=data.cache_gb)
    data = counted(data, corpus.spec)
    curriculum = Curriculum(data)
    provenance.agree(ranks.all_gather(provenance.identity(config, corpus.digest)), ranks.hosts)
    text = TextTokenizer.make(config.get(ModelConfig))
    groups = SequenceGroups(ranks, curriculum.stages, config.get(ModelConfig).heads, train.collective_timeout)

    with Journal(
        folder, ranks.rank, config.get(MetricsConfig), log_every=train.log_every, tensorboard=train.tensorboard
    ) as journal:
        # Where to go on from: rank 0 looks, all ranks do the same.
        if ranks.rank == 0:
            checkpoint_folders.remove_leftovers(folder / CHECKPOINTS)
        found: Path | None = ranks.broadcast(
            checkpoint_folders.newest(folder / CHECKPOINTS, journal.say) if ranks.rank == 0 else None
        )
        saved = None if found is None else TrainState.read(found / "state.json")
        step = 0 if saved is None else saved.step
        fresh = TrainState(
            step=step, stage=0, stage_ends=False, tokens=0 if saved is None else saved.tokens, world=ranks.world,
            zero_stage=zero_stage(deepspeed), optimizer=train.optimizer, seed=seed, data_digest=corpus.digest,
            tokenizer=corpus.spec.plain(), model=config.get(ModelConfig).model_dump(mode="json"),
            past=train_state.past_digest(data, step), has_ema=train.ema > 0,
        )  # fmt: skip
        if saved is not None and found is not None:
            for note in saved.check(fresh, accept_new_data=train.accept_new_data, folder=found):
                journal.say(note)
        if step >= curriculum.steps:
            journal.say(f"{folder}: finished, all {curriculum.steps} steps are trained (newest checkpoint {found})")
            return 0

        # The model, and its state if there is one.
        source = found
        universal = saved is not None and reader.needs_universal(saved, ranks)
        if universal and found is not None:
            journal.say(
                f"{found.name} was written by {saved.world if saved else 0} ranks, this job has {ranks.world}: converting"
            )
            source = ranks.broadcast(reader.to_universal(found) if ranks.rank == 0 else None)
        check_compiler(config.get(ModelConfig).compile, ranks.device)
        engine = Engine(lambda: build(config, corpus.spec, text), train, deepspeed, ranks, seed=seed, universal=universal)
        ema = Ema(train.ema) if train.ema else None
        guard = Guard(train.spike_sigma, train.max_skips, folder / "skipped.jsonl" if ranks.rank == 0 else None)
        if saved is not None and found is not None and source is not None:
            reader.load(engine, found, source, ema)
            guard.restore(saved.guard)
            if universal and ranks.rank == 0:
                shutil.rmtree(source)
        elif ema is not None:
            ema.start(engine.slices())
        if ranks.rank == 0:
            run_files.truncate_metrics(folder / "metrics.jsonl", step)
            provenance.write_provenance(folder, config, data_digest=corpus.digest, hosts=ranks.hosts, resumed_from=step)
            run_files.write_status(folder, "running", step, curriculum.steps)
        for words in banner(config, curriculum, corpus, engine, step):
            journal.say(words)

        # The loop.
        order = Order(seed, curriculum, {name: corpus.sources(name) for name in curriculum.streams()}, train.shuffle_window)
        saver = writer.Checkpoints(folder, ranks, train.keep_checkpoints, journal.say)
        validation = Validation.make(config, curriculum, text, ranks, groups)
        showcase = Showcase(config, corpus, text, ranks, journal.say)
        peak = hardware.peak_flops(ranks.device, engine.dtype, torch.get_num_threads()) * ranks.world
        tokens = fresh.tokens
        loading = LoaderConfig(
            micro_batch=train.micro_batch, text_length=config.get(ModelConfig).text_length, pack_tokens=train.pack_tokens,
            pack_above=train.pack_above, prefetch=train.prefetch, pin=ranks.device.type == "cuda",
        )  # fmt: skip
        steps = range(step + 1, curriculum.steps + 1)
        with Loader(corpus, order, text, loading, rank=ranks.rank, world=ranks.world, steps=steps) as loader:
            clock = Clock()
            for item in loader:
                clock.mark("data")
                place = item.curriculum_step
                step, rate = place.step, learning_rate(place.step, train, curriculum)
                window, frame_mask = enter(place, engine.module, config)

                totals: dict[str, Tensor] = {}
                reason, figures = "", Figures({}, ())
                for number, batch in enumerate(item.batches):
                    last = number == len(item.batches) - 1
                    out = engine.forward(batch.to(ranks.device), window, frame_mask, groups.of(place.stage), last=last)
                    totals = {k: v.detach().double() + totals.get(k, 0.0) for k, v in out.items()}
                    if last:
                        flags = (float(item.tokens), float(len(item.replaced)), float(stop.asked(step)), *saver.flags())
                        figures = Figures.summed(totals, flags, ranks)
                        reason = guard.verdict(figures.loss)
                    clock.mark("forward")
                    engine.backward(out["loss"], poison=bool(reason))
                    clock.mark("backward")
                outcome = engine.step(rate)
                if not outcome.applied and not reason:
                    reason = "nonfinite_gradient"
                if ema is not None and outcome.applied:
                    ema.update(engine.slices())
                clock.mark("optimizer")

                ids = read_ids(item, figures.flags[1] > 0, ranks, journal)
                guard.record(step, figures.loss, outcome.grad_norm, reason, ids)
                tokens += round(figures.flags[0])
                stopping = figures.flags[2] > 0
                saver.settle(*figures.flags[3:5])
                if stopping or place.stage_ends or step % train.checkpoint_every == 0:
                    now = TrainState(
                        **{**vars(fresh), "step": step, "stage": place.stage_number, "stage_ends": place.stage_ends,
                           "tokens": tokens, "past": train_state.past_digest(data, step), "guard": guard.plain()}
                    )  # fmt: skip
                    journal.meter.set("train_checkpoint_seconds", saver.save(engine, now, ema, config.yaml()))
                clock.mark("checkpoint")

                seconds = clock.end()
                report = StepReport(
                    step=step, stage=place.stage_number, stage_name=place.stage.name, bucket=place.mix.shape,
                    loss=figures.loss, scale_loss=figures.by_scale("scale_loss", corpus, place.stream),
                    bit_accuracy=figures.by_scale("scale_accuracy", corpus, place.stream), grad_norm=outcome.grad_norm,
                    learning_rate=rate, tokens=round(figures.flags[0]), seconds=seconds, memory=engine.memory(),
                    skipped=reason, frame_loss=figures.values["frame_loss"], sample_ids=ids,
                    mfu=step_flops(config, engine, corpus, item, window) / seconds["total"] / peak,
                )  # fmt: skip
                # A checkpoint becomes whole in a later `settle`, so no resume finds one whose last line is missing.
                journal.step(report, curriculum.steps, ranks.world)
                guard.check(step, reason)
                if saver.last_saved:
                    journal.meter.set("train_checkpoint_last_success_timestamp_seconds", saver.last_saved)
                if validation is not None and validation.due(place):
                    journal.values(step, validation.run(engine, place, journal.say, folder))
                if showcase.due(place):
                    showcase.make(engine, place)
                if stopping:
                    saver.finish()
                    why = "; ".join(sorted({text for text in ranks.all_gather(stop.reason) if text}))
                    journal.say(f"stopped after step {step} ({why}); run the same command to go on")
                    if ranks.rank == 0:
                        stop.clear()
                        run_files.write_status(folder, "stopped", step, curriculum.steps, why)
                    return STOPPED
                clock.restart()
        saver.finish()
        if ranks.rank == 0:
            run_files.write_status(folder, "finished", step, curriculum.steps)
        journal.say(
            f"finished: {curriculum.steps} steps, {tokens:,} tokens, checkpoint {checkpoint_folders.folder_of(folder / CHECKPOINTS, step)}"
        )
        return 0


def build(config: Config, spec: CodecSpec, text: TextTokenizer) -> nn.Module:
    """Return the Objective around a new VideoAR; weights come from torch's seed."""
    model = VideoAR(config.get(ModelConfig), spec.bits, text.vocabulary)
    return Objective(model, config.get(ObjectiveConfig), spec)


def enter(place: CurriculumStep, module: nn.Module, config: Config) -> tuple[int, float]:
    """Give the Objective its stage's corruption and checkpointing. Returns attention window and frame mask of the step."""
    assert isinstance(module, Objective)
    asked = stage_objective(place.stage, config.get(ObjectiveConfig))
    policy = place.stage.activation_checkpointing or config.get(TrainConfig).activation_checkpointing
    module.config = asked
    module.model.activation_checkpointing, module.model.selective = policy == "full", policy == "selective"
    return asked.window, asked.frame_mask


if __name__ == "__main__":
    leave(main())
