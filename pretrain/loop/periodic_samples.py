"""Videos sampled during training, at the steps set by `train.samples` and `train.sample_every`.

In:  the engine at some step, captions of the first samples of the stage's stream.
Out: RUN/samples/step-XXXXXXXX/ with bits.safetensors, captions.json and, if the tokenizer's weights are at hand, mp4 files.

All ranks run the same forward passes (ZeRO-3 needs every rank); rank 0 writes. What can be wrong with the request is checked before
the first step of the job; what goes wrong later (a full disk) is counted and logged, and training goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from cluster.config import Config, RunConfig
from cluster.runtime.atomic_files import replace_folder
from cluster.runtime.process_group import Ranks
from pretrain.data.curriculum import Curriculum, CurriculumStep, StreamName
from pretrain.data.sample_order import Slot
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.config import TrainConfig
from pretrain.engine.engine import Engine
from pretrain.model.config import ModelConfig
from pretrain.model.layers import Block
from pretrain.model.text_tokenizer import TextError, TextTokenizer
from pretrain.model.transformer import VideoAR
from pretrain.objective.config import ObjectiveConfig, stage_objective
from pretrain.objective.objective import Objective
from pretrain.runs.run_logger import RunLogger
from pretrain.sampling import guidance
from pretrain.sampling.guidance import SampleConfig, SampleError
from pretrain.sampling.sampler import Sampler
from tokenizer.config import TokenizerConfig


class PeriodicSamples:
    """Samples a few videos whenever they are due."""

    def __init__(self, config: Config, datasets: TokenDatasets, text: TextTokenizer, ranks: Ranks, logger: RunLogger) -> None:
        self.config, self.datasets, self.text, self.ranks, self.logger = config, datasets, text, ranks, logger

    def check(self, curriculum: Curriculum, module: nn.Module) -> None:
        """Check that what the stages ask for can be sampled. Raises SampleError or TextError."""
        if not self.config.get(TrainConfig).samples:
            return
        drop = self.config.get(ObjectiveConfig).condition_drop
        null = self.config.get(ModelConfig).null_token
        guidance.check(self.config.get(SampleConfig), null_token=null, condition_drop=drop, model="train.samples")
        for stream in curriculum.streams():
            self._sampler(module).check(self._captions(stream), self.datasets.grid(stream))

    def due(self, at: CurriculumStep) -> bool:
        """Return whether to sample after this step."""
        train = self.config.get(TrainConfig)
        if not train.samples:
            return False
        return at.stage_ends or bool(train.sample_every and at.step % train.sample_every == 0)

    def make(self, engine: Engine, at: CurriculumStep) -> None:
        """Sample on all ranks; rank 0 writes."""
        captions, grid = self._captions(at.stream), self.datasets.grid(at.stream)
        window = stage_objective(at.stage, self.config.get(ObjectiveConfig)).window
        sampler = self._sampler(engine.module)
        try:
            with uncompiled(sampler.model):
                bits = sampler.sample(captions, grid, seed=sampler.config.seed, window=window).cpu()
        except (SampleError, TextError, torch.OutOfMemoryError) as error:  # the same on all ranks
            self.logger.aside("samples", error)
            return

        def write() -> None:
            folder = self.config.get(RunConfig).dir / "samples" / f"step-{at.step:08d}"
            partial = folder.with_name(folder.name + ".partial")
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                said = self._write(partial, bits, captions, grid)
                replace_folder(partial, folder)
                self.logger.log(f"samples of step {at.step}: {folder}: {said}")
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                shutil.rmtree(partial, ignore_errors=True)
                self.logger.aside("samples", error)

        self.ranks.from_first(write)

    def _sampler(self, module: nn.Module) -> Sampler:
        assert isinstance(module, Objective)
        return Sampler(module.model, self.datasets.spec, self.text, self.config.get(SampleConfig), cut=True)

    def _captions(self, stream: StreamName) -> list[str]:
        count = min(self.config.get(TrainConfig).samples, self.datasets.rows(stream, 0))
        return [self.datasets.caption(stream, Slot(source=0, row=row, epoch=0)) for row in range(count)]

    def _write(self, folder: Path, bits: torch.Tensor, captions: list[str], grid: tuple[int, int, int]) -> str:
        """Write bits and videos, and return in words what was written."""
        save_file({"bits": bits.contiguous()}, folder / "bits.safetensors")
        (folder / "captions.json").write_text(json.dumps({"captions": captions, "grid": grid}) + "\n")
        weights = self.config.get(TokenizerConfig).weights
        if not (weights / "tokenizer.json").is_file():
            return f"bits; there is no tokenizer at {weights} to decode them"
        from pipeline.video import write_video
        from tokenizer.codec import VideoCodec

        codec = VideoCodec.load(weights)
        if codec.spec.digest != self.datasets.spec.digest:
            return f"bits; {weights} is not the tokenizer of the shards, so they are not decoded"
        stride = self.datasets.spec.spatial_stride
        videos = codec.decode(bits, grid[1] * stride, grid[2] * stride)
        for number, frames in enumerate(videos):
            write_video(folder / f"{number:03d}.mp4", frames.numpy(), self.config.get(SampleConfig).fps or self.datasets.fps)
        return f"{len(videos)} videos"


@contextmanager
def uncompiled(model: VideoAR) -> Iterator[None]:
    """Run blocks as they are written: a few clips now and then are not worth compiling for their one-token steps."""
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    kept = [block.compiled for block in blocks]
    try:
        for block in blocks:
            block.compiled = False
        yield
    finally:
        for block, choice in zip(blocks, kept, strict=True):
            block.compiled = choice
