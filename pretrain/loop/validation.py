"""Validation loss per scale and per frame on held-out shards, in the loop, on all ranks.

In:  the curriculum.validation folders, the engine at some step.
Out: a line in RUN/validation.jsonl and on the console for each stream of the stage.

The samples, their order and their random draws are the same in every validation: only the weights make a difference. Shards that
cannot be read are counted and logged, and training goes on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cluster.config import Config, RunConfig
from cluster.runtime.errors import one_line
from cluster.runtime.process_group import Ranks
from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import Curriculum, CurriculumStep
from pretrain.data.loader import Loader, LoaderConfig, StepData, TextEncoder
from pretrain.data.sample_order import Order
from pretrain.data.token_datasets import DataError, TokenDatasets
from pretrain.engine.config import TrainConfig
from pretrain.engine.engine import Engine
from pretrain.loop.step_metrics import DeviceSums, GlobalMetrics
from pretrain.model.config import ModelConfig
from pretrain.objective.config import ObjectiveConfig, stage_objective
from pretrain.objective.sequence_parallel import SequenceGroups
from pretrain.runs.run_logger import RunLogger
from tokenizer.quantization.codec_spec import CodecSpec


class ValidationFailed(RuntimeError):
    """Held-out shards that cannot be read; the message is that of the rank that found it."""


class Validation:
    """Held-out shards, opened once."""

    def __init__(
        self,
        config: Config,
        datasets: TokenDatasets,
        text: TextEncoder,
        ranks: Ranks,
        groups: SequenceGroups,
        logger: RunLogger,
    ) -> None:
        self.config, self.datasets, self.text, self.ranks, self.groups = config, datasets, text, ranks, groups
        self.logger = logger

    @classmethod
    def make(
        cls,
        config: Config,
        curriculum: Curriculum,
        text: TextEncoder,
        ranks: Ranks,
        groups: SequenceGroups,
        logger: RunLogger,
        spec: CodecSpec,
    ) -> Validation | None:
        """Open curriculum.validation; returns None if it is empty. Raises DataError.

        spec: of the tokenizer of the shards that are trained on.
        """
        data = config.get(CurriculumConfig)
        if not data.validation:
            return None
        datasets = TokenDatasets.open(data.validation, curriculum, cache=data.cache, cache_gb=data.cache_gb)
        if datasets.spec != spec:
            raise DataError(
                f"curriculum.validation: shards of another tokenizer ({datasets.spec.digest[:12]}) than curriculum.shards "
                f"({spec.digest[:12]}); tokenize both with one tokenizer"
            )
        return cls(config, datasets, text, ranks, groups, logger)

    def due(self, at: CurriculumStep) -> bool:
        """Return whether to validate after this step."""
        every = self.config.get(TrainConfig).validate_every
        return at.stage_ends or bool(every and at.step % every == 0)

    def run(self, engine: Engine, at: CurriculumStep) -> dict[str, float]:
        """Validate on each stream of the stage. All ranks call it together; returns the losses as `validation/BUCKET`."""
        found = {}
        for mix in at.stage.mix:
            try:
                metrics, samples = self._stream(engine, mix, at.stage)
            except (ValidationFailed, torch.OutOfMemoryError) as error:  # the same on all ranks
                self.logger.aside("validation", error)
                continue
            stream, loss = (mix.bucket, mix.frames), metrics.loss
            name = mix.bucket + (f":{mix.frames}" if mix.frames else "")
            found[f"validation/{name}"] = loss
            self.logger.log(f"validation after step {at.step}: {name} loss {loss:.5f} over {samples} samples")
            record = {
                "step": at.step,
                "bucket": name,
                "samples": samples,
                "loss": loss,
                "scale_loss": metrics.by_scale("scale_loss", self.datasets, stream),
                "bit_accuracy": metrics.by_scale("scale_accuracy", self.datasets, stream),
                "frame_loss": metrics.values["frame_loss"],
            }
            self.logger.line("validation", record)
            self.logger.meter.set("train_validation_loss", loss, bucket=name)
        return found

    def _load(self, loader: Loader, step: int) -> StepData:
        """Read a batch on all ranks. Raises ValidationFailed on all of them if one cannot."""
        item, error = None, ""
        try:
            item = loader.load(step)
        except (OSError, ValueError) as failure:
            error = one_line(failure)
        errors = [each for each in self.ranks.all_gather(error) if each]
        if item is None or errors:
            raise ValidationFailed(errors[0])
        return item

    def _stream(self, engine: Engine, mix: Mix, stage: Stage) -> tuple[GlobalMetrics, int]:
        train, objective = self.config.get(TrainConfig), self.config.get(ObjectiveConfig)
        held = sum(source.rows for source in self.datasets.sources((mix.bucket, mix.frames)))
        batch = min(mix.batch, held)
        steps = max(1, min(train.validation_samples, held) // batch)
        only = Mix(bucket=mix.bucket, frames=mix.frames, batch=batch)
        asked = Stage(name="validation", steps=steps, mix=(only,), sequence_parallel=stage.sequence_parallel)
        curriculum = Curriculum(CurriculumConfig(stages=(asked,)))
        streams = {name: self.datasets.sources(name) for name in curriculum.streams()}
        order = Order(self.config.get(RunConfig).seed, curriculum, streams, train.shuffle_window)
        window = stage_objective(stage, objective).window
        totals: dict[str, Tensor] = {}
        loading = LoaderConfig(
            micro_batch=train.micro_batch,
            text_length=self.config.get(ModelConfig).text_length,
            pack_tokens=train.pack_tokens,
            pack_above=train.pack_above,
        )
        loader = Loader(
            self.datasets, order, self.text, loading, rank=self.ranks.rank, world=self.ranks.world, steps=range(1, steps + 1)
        )
        for step in range(1, steps + 1):
            for part in self._load(loader, step).batches:
                out = engine.evaluate(part.to(self.ranks.device), window, self.groups.of(stage))
                totals = {k: v.detach().double() / steps + totals.get(k, 0.0) for k, v in out.items()}
        return DeviceSums(totals, self.ranks).read(), steps * batch
